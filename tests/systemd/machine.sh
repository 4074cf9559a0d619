#!/usr/bin/env bash
# A real systemd as the first process of its own namespaces. It sees an empty machine: the programs of this one read-only, and
# nothing else but FOLDER and the unit files in it. So it cannot start, change or delete anything outside.
#
# machine.sh FOLDER TARGET [PATH|PATH=SOURCE]...    must run as root, in a cgroup of its own
#
# FOLDER/units has the unit files, FOLDER/out and FOLDER/settings (/etc/inference-proxy) are writable. Each PATH is readable, too, or is SOURCE under this name.
set -euo pipefail
folder="$1" target="$2"
shift 2

if [[ "${IN_NAMESPACES:-}" != yes ]]; then
  IN_NAMESPACES=yes exec unshare --fork --pid --mount --ipc --uts --cgroup --kill-child "$BASH" "$0" "$folder" "$target" "$@"
fi

mount --make-rprivate /
root="$folder/root"
mkdir -p "$root"
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir -p proc sys dev run tmp var/lib var/log units opt "./$folder"
chmod 1777 tmp
for name in bin sbin lib lib64; do
  if [[ -L "/$name" ]]; then ln -s "$(readlink "/$name")" "$name"; elif [[ -d "/$name" ]]; then mkdir "$name"; fi
done
readable() { # $1: an absolute path, $2: what it shows
  mkdir -p ".$1"
  mount --bind "$2" ".$1"
  mount -o remount,bind,ro ".$1"
}
readable /usr /usr
[[ -L /lib ]] || for path in /lib /lib64 /bin /sbin; do readable "$path" "$path"; done
cp -a /etc etc # services may have folders there
mkdir -p etc/inference-proxy
mount --bind "$folder/settings" etc/inference-proxy
for path in "$@"; do readable "${path%%=*}" "${path#*=}"; done
mount --bind "$folder/units" units
mount -o remount,bind,ro units
mkdir -p "./$folder/out"
mount --bind "$folder/out" "./$folder/out"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom; do touch "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mkdir old
pivot_root . old
umount -l /old
rmdir /old
cd /
exec env -i PATH=/usr/bin:/usr/sbin container=other SYSTEMD_UNIT_PATH=/units \
  /lib/systemd/systemd --system "--unit=$target" --log-target=null --show-status=no
