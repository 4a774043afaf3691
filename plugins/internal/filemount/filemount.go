//go:build linux

// Package filemount keeps what processes in a mount namespace of their own see of files that
// are replaced by renaming others over them.
//
// A mount of a file shows the file that was there when it was mounted. [Refresh] mounts the
// present one in its place. A process that opens the path meanwhile gets one of the two.
package filemount

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/internal/thread"
	"github.com/musterhq/muster/plugins/sdk"
)

// ErrForeign says that a process sees none of the files, and therefore is not the one that
// was meant: its number is that of another namespace of processes.
var ErrForeign = errors.New("process has no mounts of the task's files: the executor must run in the machine's namespace of processes")

// deleted ends the root of a mount whose file was removed.
const deleted = "//deleted"

// Root returns the directory in which the worker holds the files of a task, as they lie in
// the task.
func Root(file *sdk.File) string { return strings.TrimSuffix(file.GetSource(), file.GetTarget()) }

// Refresh makes a process, and all others in its mount namespace, see the present content of
// files that are mounted there. It must be able to enter the namespace, which takes
// CAP_SYS_ADMIN.
func Refresh(pid int, files []*sdk.File) error {
	if len(files) == 0 {
		return nil
	}
	process, err := os.Open("/proc/" + strconv.Itoa(pid))
	if err != nil {
		return fmt.Errorf("find process %d: %w", pid, err)
	}
	defer func() { _ = process.Close() }()
	info, err := openat(process, "mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts of process %d: %w", pid, err)
	}
	mounted, err := parse(info)
	if err := errors.Join(err, info.Close()); err != nil {
		return fmt.Errorf("read mounts of process %d: %w", pid, err)
	}
	stale, found := map[string]string{}, false
	for _, file := range files {
		// The file system of the files may be mounted anywhere. The directory has the
		// name of the task.
		within := "/" + path.Base(Root(file)) + file.GetTarget()
		for _, m := range tops(mounted) {
			root, old := strings.CutSuffix(m.root, deleted)
			if !strings.HasSuffix(root, within) {
				continue
			}
			found = true
			if old {
				stale[m.point] = file.GetSource()
			}
		}
	}
	switch {
	case !found:
		return ErrForeign
	case len(stale) == 0:
		return nil
	}
	namespace, err := openat(process, "ns/mnt")
	if err != nil {
		return fmt.Errorf("open mount namespace of process %d: %w", pid, err)
	}
	defer func() { _ = namespace.Close() }()
	return thread.Run(func() error { return replace(namespace, stale) })
}

func openat(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// mount is one line of mountinfo.
type mount struct{ id, parent, root, point string }

func parse(info io.Reader) ([]mount, error) {
	var all []mount
	lines := bufio.NewScanner(info)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			return nil, fmt.Errorf("line %q has too few fields", lines.Text())
		}
		all = append(all, mount{fields[0], fields[1], unescape.Replace(fields[3]), unescape.Replace(fields[4])})
	}
	return all, lines.Err()
}

// unescape undoes what the kernel writes in place of some characters.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// tops returns the mounts that are not covered by another one at the same point.
func tops(all []mount) []mount {
	covered := map[[2]string]bool{}
	for _, m := range all {
		covered[[2]string{m.parent, m.point}] = true
	}
	var top []mount
	for _, m := range all {
		if !covered[[2]string{m.id, m.point}] {
			top = append(top, m)
		}
	}
	return top
}

// beneath has a mount put beneath the one that is there (MOVE_MOUNT_BENEATH, from Linux 6.5).
const beneath = 0x200

// replace mounts files, whose paths are those of this thread's namespace, at points of
// another one. The thread stays in the other namespace.
func replace(namespace *os.File, sources map[string]string) error {
	clones := map[string]int{}
	defer func() {
		for _, fd := range clones {
			_ = unix.Close(fd)
		}
	}()
	for point, source := range sources {
		fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("clone mount of %s: %w", source, err)
		}
		clones[point] = fd
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("make mount of %s read-only: %w", source, err)
		}
	}
	// A thread that shares its working directory with others cannot change the namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the working directory of other threads: %w", err)
	}
	if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace: %w", err)
	}
	for point, fd := range clones {
		err := unix.MoveMount(fd, "", unix.AT_FDCWD, point, unix.MOVE_MOUNT_F_EMPTY_PATH|beneath)
		if err == nil {
			err = unix.Unmount(point, unix.MNT_DETACH)
		} else {
			// An older kernel: the former file stays beneath the new one.
			err = unix.MoveMount(fd, "", unix.AT_FDCWD, point, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", point, err)
		}
	}
	return nil
}
