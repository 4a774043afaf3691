package pluginhost

import (
	"fmt"
	"os"
)

// samePath is a path that leads a process that is about to be started from here to an
// open file, and to nothing else. "" for a script: its interpreter opens it by its
// path, when this one leads nowhere any more. "" also where /proc is missing.
func samePath(f *os.File) string {
	begin := make([]byte, 2)
	if _, err := f.ReadAt(begin, 0); err != nil || string(begin) == "#!" {
		return ""
	}
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}
