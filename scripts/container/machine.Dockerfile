# A machine for the tests: Debian with systemd as process 1, and the dependencies of the package without the package.
# The build context is target/package.
FROM debian:bookworm-slim
COPY opi-spdk_*.deb /tmp/
RUN apt-get update \
    && apt-get install -y --no-install-recommends strace systemd systemd-sysv procps logrotate python3 python3-apt curl pci.ids /tmp/opi-spdk_*.deb \
    && apt-get purge -y opi-spdk \
    && rm -rf /tmp/*.deb
STOPSIGNAL SIGRTMIN+3
# Mounts are shared on a machine but not in a container; control groups and kernel settings are read-only in a
# container, and systemd needs its own.
CMD ["sh", "-c", "mount --make-rshared /; mount -o remount,rw /sys; for at in /sys/fs/cgroup /sys/fs/cgroup/*; do mount -o remount,bind,rw $at 2>/dev/null; done; exec /sbin/init"]
