#!/bin/sh
# boot.sh UPPER: this machine's own files, read-only, under a systemd of their own as process 1: in
# namespaces, with a network of its own that has only a loopback, and a cgroup of its own. What it
# writes lies in UPPER, an empty directory on a tmpfs. `machine.py` calls it, in its own cgroup.
# Stage 2 runs in the new namespaces.
set -eu
upper=$1

if [ "${2:-}" != inside ]; then
    exec unshare --mount --pid --uts --ipc --net --cgroup --fork --kill-child \
        --propagation private sh "$0" "$upper" inside
fi

root=$upper/root
mkdir -p "$upper/files" "$upper/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$upper/files,workdir=$upper/work" "$root"
mount -t proc proc "$root/proc"
# The kernel is everybody's: nothing in there may change its settings.
for place in sys sysrq-trigger; do
    [ -e "$root/proc/$place" ] || continue
    mount --bind "$root/proc/$place" "$root/proc/$place"
    mount -o remount,bind,ro "$root/proc/$place"
done
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t fusectl fusectl "$root/sys/fs/fuse/connections"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229 autofs:10:235; do
    name=${device%%:*}
    numbers=${device#*:}
    mknod -m 666 "$root/dev/$name" c "${numbers%:*}" "${numbers#*:}"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
cd "$root"
pivot_root . mnt
umount -l /mnt
mount --make-rshared /
ip link set lo up
hostname booted
exec setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio \
    env -i container=nearline PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --system --unit=multi-user.target \
    --log-target=journal --show-status=no --crash-reboot=no
