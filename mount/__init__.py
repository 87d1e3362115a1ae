"""The FUSE file system, the `nearline` command, and everything around a mount.

    filesystem  pyfuse3's requests                    session  every part of cache and remote
    kernel, attributes, versions                      what the kernel is told and shown
    daemon      one mount, from mounting to unmounted

    cli/        what people type                      asked/   what a running mount does for it
    starting/   checks, processes, unmounting, `up`   units/   systemd, launchd
    config, credentials, doctor, failures, logs, metrics, mountinfo, progress

Reaches the server over the wire only.
"""
