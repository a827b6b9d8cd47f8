# Runs the command behind `--` in the Debian of $1, which sees the folders in between where they are outside. Run it by
# `unshare -m`: the mounts are this process's and its children's only. Swift finds its libraries through /proc.
set -eu
root=$1
shift
while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount --bind "$1" "$root$1"
    shift
done
shift
mount -t proc proc "$root/proc"
exec chroot "$root" "$@"
