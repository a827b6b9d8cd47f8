# Makes a Debian with Swift in the folder $1 from the mirror $2, unless it is there. The folder gets its name once it is whole.
# Run it by `unshare -m`: what it mounts, nobody else sees and nobody has to unmount, as the mounts end with its last process.
set -eu
root=$1 part=$1.part
mkdir -p "$(dirname "$root")"
exec 9>"$root.lock"
flock 9
[ ! -d "$root" ] || exit 0
rm -rf --one-file-system "$part"
debootstrap --variant=minbase --include=ca-certificates trixie "$part" "$2" >&2
mount -t proc proc "$part/proc"
export DEBIAN_FRONTEND=noninteractive TMPDIR=/tmp
chroot "$part" apt-get update -q >&2
chroot "$part" apt-get install -qy --no-install-recommends swiftlang libc6-dev libstdc++-14-dev pkg-config git >&2
chroot "$part" apt-get clean
chroot "$part" swift --version
umount "$part/proc"
mv -T "$part" "$root"
