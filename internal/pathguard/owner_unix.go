//go:build unix

package pathguard

import (
	"io/fs"
	"syscall"
)

// posix tells whether files have owners and permission bits.
const posix = true

func ownerOf(info fs.FileInfo) (user, group int, ok bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(stat.Uid), int(stat.Gid), true
}
