"""The demands of POSIX, and of Linux where POSIX leaves it open, on calls on names and attributes.

Scripts for `posix_actor`, by family and name. They hold on ext4: the tests prove that too. `KIND`
in a script stands for each kind of file in turn.
"""

from __future__ import annotations

# Sockets and devices go the way of FIFOs everywhere but where they are made.
KINDS = ("regular", "dir", "fifo", "symlink")

CHMOD = {
    "the owner and root change the mode": """
        make KIND f
        chown f 1000 1000
        u:1000:1000 chmod f 0111
        lstat f = mode=0111
        chmod f 0751
        lstat f = mode=0751 uid=1000 gid=1000
    """,
    "others may not": """
        make KIND f
        chown f 1000 1000
        u:1001:1000 chmod f 0777 = EPERM
    """,
    "only ctime moves": """
        make KIND f
        remember f
        chmod f 0700
        moved f ctime
    """,
    "what is refused moves nothing": """
        make KIND f
        remember f
        u:1001:1001 chmod f 0700 = EPERM
        moved f
    """,
    "a link is followed": """
        create f
        symlink f s
        chmod s 0600
        lstat f = mode=0600
        lstat s = mode=0777 type=symlink
    """,
    "who is not in the group of a file cannot make it setgid": """
        create f
        chown f 1000 2000
        u:1000:1000 chmod f 02755
        lstat f = mode=0755
        u:1000:1000,2000 chmod f 02755
        lstat f = mode=2755
        u:1000:2000 chmod f 02711
        lstat f = mode=2711
        chmod f 06755
        lstat f = mode=6755
    """,
    "the sticky bit is kept on files and directories": """
        mkdir d
        chown d 1000 1000
        u:1000:1000 chmod d 01755
        lstat d = mode=1755
        create f
        chmod f 01644
        lstat f = mode=1644
    """,
    "an open file too": """
        create f
        open f O_RDONLY as h
        chmod @h 0604
        lstat f = mode=0604
        unlink f
        chmod @h 0640
        stat @h = mode=0640 nlink=0
    """,
    "writing takes setuid and setgid away": """
        create f
        chown f 1000 1000
        chmod f 06777
        u:1001:1001 open f O_WRONLY as h
        u:1001:1001 write @h x = 1
        stat @h = mode=0777 size=1
        close @h
        lstat f = mode=0777
    """,
    "what root writes leaves setuid and setgid": """
        create f
        open f O_WRONLY as h
        chmod f 06777
        write @h x = 1
        fsync @h
        truncate f 5
        lstat f = mode=6777 size=5
        close @h
        lstat f = mode=6777 size=5
        u:1001:1001 open f O_WRONLY as h
        write @h x = 1
        close @h
        stat f = size=5
    """,
    "what was written before is no reason": """
        create f
        chown f 1000 1000
        u:1000:1000 open f O_WRONLY as h
        u:1000:1000 write @h x = 1
        u:1000:1000 chmod f 06755
        fsync @h
        close @h
        lstat f = mode=6755 size=1
        u:1000:1000 open f O_WRONLY as h
        u:1000:1000 write @h x = 1
        lstat f = mode=0755 size=1
        close @h
    """,
    "so does writing by one who has laid root's rights down": """
        create f
        chmod f 06777
        open f O_WRONLY as h
        u:1001:1001 write @h x = 1
        lstat f = mode=0777
        close @h
    """,
    "setgid without execution is left by who is in the group": """
        create f
        chown f 1000 2000
        chmod f 06666
        u:1000:1000,2000 open f O_WRONLY as h
        u:1000:1000,2000 write @h x = 1
        lstat f = mode=2666
        u:1001:1001 truncate f 0
        lstat f = mode=0666
        chmod f 02666
        u:1001:1001 open f O_WRONLY as i
        u:1001:1001 write @i x = 1
        lstat f = mode=0666
        close @h
        close @i
    """,
    "truncating takes setuid and setgid away": """
        create f
        chmod f 06777
        u:1001:1001 truncate f 5
        lstat f = mode=0777 size=5
        chmod f 06777
        u:1001:1001 open f O_WRONLY|O_TRUNC
        lstat f = mode=0777 size=0
    """,
}

CHOWN = {
    "root gives files away": """
        make KIND f
        lchown f 123 456
        lstat f = uid=123 gid=456
        lchown f 0 -1
        lstat f = uid=0 gid=456
        lchown f -1 0
        lstat f = uid=0 gid=0
        lchown f 4294967294 4294967294
        lstat f = uid=4294967294 gid=4294967294
    """,
    "the owner may choose one of their groups": """
        make KIND f
        lchown f 1000 1000
        u:1000:1000,2000 lchown f -1 2000
        lstat f = uid=1000 gid=2000
        u:1000:1000,2000 lchown f 1000 1000
        lstat f = uid=1000 gid=1000
        u:1000:1000 lchown f -1 3000 = EPERM
        u:1000:1000 lchown f 1001 -1 = EPERM
        u:1001:1001 lchown f -1 1001 = EPERM
        lstat f = uid=1000 gid=1000
    """,
    "only ctime moves, with both unchanged too": """
        make KIND f
        remember f
        lchown f 5 5
        moved f ctime
        remember f
        lchown f 5 5
        moved f ctime
        remember f
        lchown f -1 -1
        moved f ctime
    """,
    "what is refused moves nothing": """
        make KIND f
        remember f
        u:1001:1001 lchown f 1001 1001 = EPERM
        moved f
    """,
    "a file with a new owner is not setuid or setgid": """
        create f
        chmod f 06755
        chown f 5 5
        lstat f = mode=0755 uid=5
        chown f 1000 1000
        chmod f 06755
        u:1000:1000,2000 chown f -1 2000
        lstat f = mode=0755 gid=2000
    """,
    "nor after chown to the same, or to nobody else": """
        create f
        chown f 5 5
        chmod f 06755
        chown f 5 5
        lstat f = mode=0755
        chmod f 06755
        chown f -1 -1
        lstat f = mode=0755
    """,
    "a directory keeps setgid": """
        mkdir d
        chmod d 06755
        chown d 5 5
        lstat d = mode=6755
    """,
    "what is setgid and cannot be executed keeps it when root gives it away": """
        create f
        chmod f 02644
        chown f 5 5
        lstat f = mode=2644
    """,
    "through a link to its file": """
        create f
        symlink f s
        chown s 7 8
        lstat f = uid=7 gid=8
        lstat s = uid=0 gid=0
    """,
}

LINK = {
    "two names of one file": """
        make KIND-no-dir f
        lstat f = nlink=1
        link f g
        lstat f = nlink=2
        lchown g 5 6
        lstat f = nlink=2 uid=5 gid=6
        unlink f
        lstat g = nlink=1 uid=5
        lstat f = ENOENT
    """,
    "ctime of the file and mtime of the directory move": """
        mkdir d
        make KIND-no-dir f
        remember d
        remember f
        link f d/g
        moved f ctime
        moved d mtime,ctime
        remember d
        remember f
        unlink d/g
        moved f ctime
        moved d mtime,ctime
    """,
    "what is refused moves nothing": """
        mkdir d
        chmod d 0755
        create f
        remember d
        remember f
        u:1001:1001 link f d/g = EPERM-or-EACCES
        moved f
        moved d
    """,
    "errors": """
        mkdir d
        create f
        create g
        link d e = EPERM
        link f g = EEXIST
        link f d = EEXIST
        link no g = ENOENT
        link f no/g = ENOENT
        link f g/x = ENOTDIR
        link f/x h = ENOTDIR
        link f %255
        lstat f = nlink=2
        link f %256 = ENAMETOOLONG
        link %256 h = ENAMETOOLONG
        symlink loop loop
        link loop/x y = ELOOP
        link f loop/y = ELOOP
    """,
    "a symbolic link itself gets the name": """
        create f
        symlink f s
        link s t
        lstat t = type=symlink nlink=2
        lstat f = nlink=1
    """,
    "an unwritable directory": """
        mkdir d 0555
        create f
        chown f 1000 1000
        u:1000:1000 link f d/g = EACCES
        mkdir e 0600
        chown e 1000 1000
        u:1000:1000 link f e/g = EACCES
    """,
}

MAKING = {
    "owner, group, mode and size": """
        mkdir d 0777
        umask 0
        u:1000:1001 create d/f 0751
        lstat d/f = type=regular mode=0751 uid=1000 gid=1001 nlink=1 size=0
        u:1000:1001 mkdir d/d 0751
        lstat d/d = type=dir mode=0751 uid=1000 gid=1001 nlink=2
        lstat d = nlink=3
        u:1000:1001 mkfifo d/p 0751
        lstat d/p = type=fifo mode=0751 uid=1000 gid=1001
        u:1000:1001 symlink abc d/s
        lstat d/s = type=symlink uid=1000 gid=1001 size=3
        u:1000:1001 make socket d/u
        lstat d/u = type=socket uid=1000 gid=1001
    """,
    "the umask": """
        umask 027
        create f 0777
        mkdir d 0777
        mkfifo p 0666
        lstat f = mode=0750
        lstat d = mode=0750
        lstat p = mode=0640
    """,
    "a setgid directory hands its group on": """
        mkdir d
        chown d 1000 2000
        chmod d 02777
        u:1001:1001 create d/f 0644
        u:1001:1001 mkdir d/d 0755
        u:1001:1001 symlink x d/s
        u:1001:1001 mkfifo d/p
        lstat d/f = uid=1001 gid=2000 mode=0644
        lstat d/d = uid=1001 gid=2000 mode=2755
        lstat d/s = uid=1001 gid=2000
        lstat d/p = uid=1001 gid=2000
    """,
    "who is not in that group makes no executable setgid files there": """
        mkdir d
        chown d 1000 2000
        chmod d 02777
        u:1001:1001 create d/f 02775
        lstat d/f = gid=2000 mode=0775
        u:1001:1001,2000 create d/g 02775
        lstat d/g = gid=2000 mode=2775
        create d/h 02775
        lstat d/h = gid=2000 mode=2775
    """,
    "a file can be made with no permissions and be written": """
        mkdir d 0777
        u:1000:1000 open d/f O_CREAT|O_WRONLY 0 as h
        u:1000:1000 write @h abc = 3
        close @h
        lstat d/f = mode=0000 size=3
        u:1000:1000 open d/f O_RDONLY = EACCES
    """,
    "the directory's mtime and ctime move": """
        mkdir d
        remember d
        make KIND d/f
        moved d mtime,ctime
        remember d
        remove d/f
        moved d mtime,ctime
    """,
    "what is refused moves nothing": """
        mkdir d 0555
        create d/f
        remember d
        u:1001:1001 create d/x = EACCES
        u:1001:1001 mkdir d/x = EACCES
        u:1001:1001 mkfifo d/x = EACCES
        u:1001:1001 symlink x d/x = EACCES
        u:1001:1001 unlink d/f = EACCES
        create d/f = EEXIST
        mkdir d/f = EEXIST
        mkfifo d/f = EEXIST
        symlink x d/f = EEXIST
        rmdir d/no = ENOENT
        unlink d/no = ENOENT
        moved d
    """,
    "errors": """
        make KIND f
        create f = EEXIST
        mkdir f = EEXIST
        mkfifo f = EEXIST
        mknod f char = EEXIST
        symlink x f = EEXIST
        make socket f = EADDRINUSE
        create no/f = ENOENT
        mkdir no/f = ENOENT
        mkfifo no/f = ENOENT
        symlink x no/f = ENOENT
        create g
        create g/x = ENOTDIR
        mkdir g/x = ENOTDIR
        mkfifo g/x = ENOTDIR
        symlink x g/x = ENOTDIR
        create %256 = ENAMETOOLONG
        mkdir %256 = ENAMETOOLONG
        mkfifo %256 = ENAMETOOLONG
        symlink x %256 = ENAMETOOLONG
        mkdir %255
        create %255/%255
        unlink %255/%255
        rmdir %255
        create %%4096 = ENAMETOOLONG
        create %%4095
        unlink p
        symlink a b
        symlink b a
        create a/x = ELOOP
        mkdir a/x = ELOOP
        mkdir . = EEXIST
        mkdir .. = EEXIST
    """,
    "devices": """
        mknod c char 0640 1,3
        mknod b block 0600 7,300
        lstat c = type=char mode=0640 device=1,3
        lstat b = type=block mode=0600 device=7,300
        mknod big char 0640 4095,1048575
        lstat big = device=4095,1048575
        mkdir d 0777
        u:1000:1000 mknod d/c char = EPERM
        u:1000:1000 mknod d/b block = EPERM
        u:1000:1000 mknod d/r regular
        lstat d/r = type=regular size=0
    """,
}

OPEN = {
    "permissions of owner, group and others": """
        create f 0640
        chown f 1000 2000
        u:1000:1000 open f O_RDWR
        u:1001:2000 open f O_RDONLY
        u:1001:1001,2000 open f O_RDONLY
        u:1001:2000 open f O_WRONLY = EACCES
        u:1001:1001 open f O_RDONLY = EACCES
        chmod f 0046
        u:1000:2000 open f O_RDONLY = EACCES
        u:1001:2000 open f O_RDONLY
        u:1001:1001 open f O_RDWR
        chmod f 0
        u:1000:1000 open f O_RDONLY = EACCES
        open f O_RDWR
    """,
    "access says the same": """
        create f 0654
        chown f 1000 2000
        u:1000:1000 access f rw = True
        u:1000:1000 access f x = False
        u:1001:2000 access f rx = True
        u:1001:2000 access f w = False
        u:1001:1001 access f r = True
        u:1001:1001 access f w = False
        access f x = True
        chmod f 0644
        access f x = False
    """,
    "a directory without x lets nobody through": """
        mkdir d 0644
        create d/f 0666
        u:1000:1000 open d/f O_RDONLY = EACCES
        u:1000:1000 lstat d/f = EACCES
        u:1000:1000 list d = f
        chmod d 0711
        u:1000:1000 open d/f O_RDONLY
        u:1000:1000 list d = EACCES
    """,
    "O_EXCL, O_TRUNC, O_APPEND, O_DIRECTORY, O_NOFOLLOW": """
        open f O_CREAT|O_EXCL|O_WRONLY
        open f O_CREAT|O_EXCL|O_WRONLY = EEXIST
        open f O_WRONLY as h
        write @h hello = 5
        close @h
        open f O_WRONLY|O_APPEND as h
        write @h !! = 2
        close @h
        lstat f = size=7
        open f O_RDONLY as h
        pread @h 9 0 = hello!!
        close @h
        open f O_WRONLY|O_TRUNC
        lstat f = size=0
        open f O_RDONLY|O_DIRECTORY = ENOTDIR
        symlink f s
        symlink no t
        open s O_RDONLY|O_NOFOLLOW = ELOOP
        open t O_RDONLY = ENOENT
        open t O_CREAT|O_EXCL|O_WRONLY = EEXIST
        open t O_CREAT|O_WRONLY
        lstat no = type=regular
    """,
    "errors": """
        mkdir d
        create f
        open d O_WRONLY = EISDIR
        open d O_RDWR = EISDIR
        open d O_RDONLY
        open d O_CREAT|O_RDONLY = EISDIR
        open no O_RDONLY = ENOENT
        open f/x O_RDONLY = ENOTDIR
        open f/ O_RDONLY = ENOTDIR
        open %256 O_RDONLY = ENAMETOOLONG
        open %%4096 O_RDONLY = ENAMETOOLONG
        symlink loop loop
        open loop O_RDONLY = ELOOP
        open loop/x O_CREAT|O_WRONLY = ELOOP
        mkfifo p
        open p O_WRONLY|O_NONBLOCK = ENXIO
        make socket u
        open u O_RDONLY = ENXIO
    """,
    "O_TRUNC moves mtime and ctime": """
        open f O_CREAT|O_WRONLY as h
        write @h hello = 5
        close @h
        remember f
        open f O_WRONLY|O_TRUNC
        moved f mtime,ctime
        remember f
        open f O_WRONLY
        moved f
    """,
    "a removed file lives as long as it is open": """
        open f O_CREAT|O_RDWR as h
        write @h hello = 5
        unlink f
        stat @h = nlink=0 size=5
        pread @h 5 0 = hello
        truncate @h 2
        chown @h 5 6
        stat @h = nlink=0 size=2 uid=5 gid=6
        create f
        stat f = size=0 nlink=1
    """,
}

RENAME = {
    "a file keeps everything but its name": """
        make KIND f
        lchown f 5 6
        mkdir d
        rename f d/g
        lstat f = ENOENT
        lstat d/g = uid=5 gid=6
        rename d/g h
        lstat h = uid=5 gid=6
    """,
    "times of the directories move, and ctime of the file": """
        mkdir d
        mkdir e
        make KIND d/f
        remember d
        remember e
        remember d/f
        rename d/f d/f2
        rename d/f2 e/f
        rename e/f d/f
        moved d mtime,ctime
        moved e mtime,ctime
        moved d/f ctime
    """,
    "over another of the same kind": """
        make KIND f
        make KIND g
        lchown f 5 6
        rename f g
        lstat f = ENOENT
        lstat g = uid=5 gid=6
    """,
    "over an open file": """
        open g O_CREAT|O_RDWR as h
        write @h old = 3
        create f
        rename f g
        stat @h = nlink=0 size=3
        lstat g = nlink=1 size=0
    """,
    "over one of several names": """
        create f
        create g
        link g h
        rename f g
        lstat h = nlink=1
        remember h
        link f2 f3 = ENOENT
        link h h2
        moved h ctime
    """,
    "of one file onto itself does nothing": """
        create f
        link f g
        remember f
        rename f g
        lstat f = nlink=2
        moved f
        rename f f
        moved f
    """,
    "kinds that do not match": """
        mkdir d
        make KIND-no-dir f
        rename f d = EISDIR
        rename d f = ENOTDIR
    """,
    "only an empty directory is replaced": """
        mkdir d
        mkdir e
        create e/f
        rename d e = ENOTEMPTY-or-EEXIST
        unlink e/f
        rename d e
        lstat d = ENOENT
    """,
    "a directory is not moved into itself": """
        mkdir d
        mkdir d/e
        rename d d/e = EINVAL
        rename d d/x = EINVAL
        rename d d/e/x = EINVAL
        rename d/e d = ENOTEMPTY-or-EEXIST
        rename d/. x = EBUSY-or-EINVAL
        rename d/e/.. x = EBUSY-or-EINVAL
    """,
    "link counts follow directories": """
        mkdir d
        mkdir e
        mkdir d/x
        lstat d = nlink=3
        rename d/x e/x
        lstat d = nlink=2
        lstat e = nlink=3
        mkdir d/x
        rename d/x e/x
        lstat d = nlink=2
        lstat e = nlink=3
        stat e/x/.. = nlink=3
    """,
    "errors": """
        create f
        rename no g = ENOENT
        rename f no/g = ENOENT
        rename f f/g = ENOTDIR
        rename f/x g = ENOTDIR
        rename f %255
        rename %255 f
        rename f %256 = ENAMETOOLONG
        rename %256 g = ENAMETOOLONG
        symlink loop loop
        rename loop/x g = ELOOP
        rename f loop/x = ELOOP
        rename loop g
        lstat g = type=symlink
    """,
    "flags": """
        create f 0600
        mkdir g
        rename f g noreplace = EEXIST
        rename f g exchange
        lstat f = type=dir
        lstat g = type=regular mode=0600
        rename f no exchange = ENOENT
        rename g h noreplace
        lstat h = type=regular
        mkdir f/d
        rename f f/d exchange = EINVAL
    """,
    "an exchange moves the link counts": """
        mkdir d
        mkdir e
        mkdir d/x
        create e/x
        rename d/x e/x exchange
        lstat d = nlink=2
        lstat e = nlink=3
    """,
    "an exchange moves the times": """
        mkdir d
        mkdir e
        create d/x
        create e/x
        remember d
        remember e
        remember d/x
        rename d/x e/x exchange
        moved d mtime,ctime
        moved e mtime,ctime
        rename d/x e/x exchange
        moved d/x ctime
    """,
    "both directories must be writable": """
        mkdir d 0755
        chown d 1000 1000
        mkdir e 0755
        create d/f
        u:1000:1000 rename d/f e/f = EACCES
        u:1001:1001 rename d/f d/g = EACCES
        u:1000:1000 rename d/f d/g
    """,
    "a directory that changes its parent must be writable itself": """
        mkdir d 0777
        mkdir e 0777
        mkdir d/x 0755
        u:1000:1000 rename d/x d/y
        u:1000:1000 rename d/y e/y = EACCES
        chown d/y 1000 1000
        u:1000:1000 rename d/y e/y
    """,
    "a sticky directory": """
        mkdir d
        chmod d 01777
        make KIND d/f
        lchown d/f 1000 1000
        u:1001:1001 rename d/f d/g = EPERM-or-EACCES
        u:1000:1000 rename d/f d/g
        u:1001:1001 create d/mine
        u:1000:1000 rename d/mine d/h = EPERM-or-EACCES
        u:1001:1001 rename d/mine d/g = EPERM-or-EACCES-or-EISDIR-or-ENOTDIR
        rename d/g d/f
    """,
}

REMOVING = {
    "errors": """
        mkdir d
        create f
        unlink d = EISDIR
        rmdir f = ENOTDIR
        rmdir no = ENOENT
        unlink no = ENOENT
        unlink f/x = ENOTDIR
        rmdir f/x = ENOTDIR
        unlink %256 = ENAMETOOLONG
        rmdir %256 = ENAMETOOLONG
        symlink loop loop
        unlink loop/x = ELOOP
        rmdir loop/x = ELOOP
        rmdir loop = ENOTDIR
        rmdir d/. = EINVAL
        create d/f
        rmdir d = ENOTEMPTY
        rmdir d/.. = ENOTEMPTY
        unlink d/f
        rmdir d
        unlink loop
    """,
    "a removed directory takes nothing": """
        mkdir d
        open d O_RDONLY as h
        rmdir d
        stat @h = nlink=0 type=dir
        list d = ENOENT
    """,
    "a sticky directory": """
        mkdir d
        chown d 1000 1000
        chmod d 01777
        make KIND d/f
        lchown d/f 1001 1001
        u:1002:1002 remove d/f = EPERM
        u:1001:1001 remove d/f
        make KIND d/f
        lchown d/f 1001 1001
        u:1000:1000 remove d/f
        make KIND d/f
        remove d/f
        list d = nothing
    """,
    "an unwritable directory": """
        mkdir d 0755
        create d/f 0777
        mkdir d/e 0777
        u:1000:1000 unlink d/f = EACCES
        u:1000:1000 rmdir d/e = EACCES
        chmod d 0766
        u:1000:1000 unlink d/f = EACCES
        chmod d 0777
        u:1000:1000 unlink d/f
        u:1000:1000 rmdir d/e
    """,
    "the last but one name": """
        create f
        link f g
        remember g
        unlink f
        moved g ctime
        lstat g = nlink=1
    """,
}

SYMLINK = {
    "targets are kept as given": """
        symlink a/../b/ s
        readlink s = a/../b/
        lstat s = type=symlink mode=0777 size=7
        symlink %255 t
        lstat t = size=255
        symlink %4095 u
        lstat u = size=4095
        symlink %4096 v = ENAMETOOLONG
        create f
        readlink f = EINVAL
    """,
    "forty links are followed and no more": """
        create f
        symlink f 1
        symlink 1 2
        stat 2 = type=regular
        symlink self self
        stat self = ELOOP
        chmod self 0600 = ELOOP
        truncate self 0 = ELOOP
        chown self 1 1 = ELOOP
        lchown self 1 1
        lstat self = uid=1 gid=1
    """,
}

TRUNCATE = {
    "to more and to less": """
        open f O_CREAT|O_RDWR as h
        write @h 0123456789 = 10
        truncate f 4
        lstat f = size=4
        truncate f 8
        lstat f = size=8
        open f O_RDONLY as r
        pread @r 20 0 = 01230000
        truncate @h 2
        pread @r 20 0 = 01
        truncate @h 3000000000
        lstat f = size=3000000000
        pread @r 2 2999999998 = 00
    """,
    "mtime and ctime move": """
        create f
        truncate f 123
        remember f
        truncate f 100
        moved f mtime,ctime
        remember f
        truncate f 200
        moved f mtime,ctime
    """,
    "errors": """
        create f 0644
        mkdir d
        truncate d 0 = EISDIR
        truncate no 0 = ENOENT
        truncate f/x 0 = ENOTDIR
        truncate f -1 = EINVAL
        truncate %256 0 = ENAMETOOLONG
        remember f
        u:1000:1000 truncate f 0 = EACCES
        moved f
        open f O_RDONLY as h
        truncate @h 0 = EINVAL
        mkfifo p
        truncate p 0 = EINVAL
    """,
    "to nothing through a link": """
        open f O_CREAT|O_RDWR as h
        write @h abc = 3
        symlink f s
        truncate s 0
        lstat f = size=0
        lstat s = size=1
    """,
}

TIMES = {
    "both times, to the nanosecond": """
        make KIND f
        utimensat f 1234567890123456789 987654321987654321 nofollow
        lstat f = atime=1234567890123456789 mtime=987654321987654321
    """,
    "before 1970 and after 2038 and 2106": """
        make KIND f
        utimensat f -1000000001 -1 nofollow
        lstat f = atime=-1000000001 mtime=-1
        utimensat f 2200000000000000001 4300000000000000002 nofollow
        lstat f = atime=2200000000000000001 mtime=4300000000000000002
        utimensat f 9000000000000000003 9100000000000000004 nofollow
        lstat f = atime=9000000000000000003 mtime=9100000000000000004
    """,
    "one, both, none": """
        make KIND f
        utimensat f 1000 2000 nofollow
        remember f
        utimensat f omit omit nofollow
        moved f
        utimensat f 3000 omit nofollow
        lstat f = atime=3000 mtime=2000
        moved f atime,ctime
        utimensat f omit 4000 nofollow
        lstat f = atime=3000 mtime=4000
        remember f
        utimensat f now omit nofollow
        moved f atime,ctime
        remember f
        utimensat f now now nofollow
        moved f atime,mtime,ctime
    """,
    "who may": """
        make KIND f
        lchown f 1000 1000
        u:1000:1000 utimensat f 1 2 nofollow
        u:1001:1001 utimensat f 1 2 nofollow = EPERM
        u:1001:1001 utimensat f 1 now nofollow = EPERM
        u:1001:1001 utimensat f omit omit nofollow
        lstat f = atime=1 mtime=2
    """,
    "who may write may set them to now, and to nothing else": """
        create f 0666
        utimensat f 1 2
        u:1001:1001 utimensat f 1 2 = EPERM
        remember f
        u:1001:1001 utimensat f now now
        moved f atime,mtime,ctime
        chmod f 0644
        u:1001:1001 utimensat f now now = EACCES
    """,
    "of an open file, of a link and through one": """
        open f O_CREAT|O_RDWR as h
        utimensat @h 5 6
        lstat f = atime=5 mtime=6
        symlink f s
        utimensat s 7 8
        lstat f = atime=7 mtime=8
        utimensat s 9 10 nofollow
        lstat s = mtime=10
        lstat f = mtime=8
        write @h x = 1
        remember @h
        utimensat f 11 12
        lstat f = atime=11 mtime=12
        close @h
        lstat f = atime=11 mtime=12
    """,
    "writing moves mtime and ctime": """
        open f O_CREAT|O_RDWR as h
        remember f
        write @h x = 1
        moved f mtime,ctime
        remember f
        close @h
        moved f
    """,
    "ctime of a file stays when its directory moves": """
        mkdir d
        create d/f
        remember d/f
        rename d e
        rename e d
        moved d/f
    """,
}

FAMILIES = {
    "chmod": CHMOD,
    "chown": CHOWN,
    "link": LINK,
    "making": MAKING,
    "open": OPEN,
    "rename": RENAME,
    "removing": REMOVING,
    "symlink": SYMLINK,
    "truncate": TRUNCATE,
    "times": TIMES,
}


def scripts(family: str) -> list[tuple[str, str]]:
    """(name, script) of a family, with every kind of file where any will do."""
    found = []
    for name, text in FAMILIES[family].items():
        if "KIND" not in text:
            found.append((name, text))
            continue
        for kind in KINDS:
            if kind == "dir" and "KIND-no-dir" in text:
                continue
            if kind == "symlink" and _follows(text):
                continue
            filled = text.replace("KIND-no-dir", kind).replace("KIND", kind)
            found.append((f"{name}: {kind}", filled))
    return found


def _follows(text: str) -> bool:
    """Symbolic links have no mode of their own, and chmod means what they point to."""
    return "chmod f" in text
