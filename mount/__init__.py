"""The FUSE file system, the `nearline` command, and everything around a mount.

    fuse/      the kernel's requests, and what the kernel is told
    session/   a mount's connection to its drive
    control/   what a running mount does for commands, and the socket between the two
    daemon     one mount, from mounting to unmounted
    process/   starting, finding, checking and ending a mount's process; up/: `nearline up`
    cli/       what people type
    units/     systemd, launchd
    config, credentials, doctor, failures, holders, logs, metrics, mountinfo, progress

Reaches the server over the wire only.
"""
