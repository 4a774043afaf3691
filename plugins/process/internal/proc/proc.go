//go:build linux

// Package proc tells Linux processes apart for good. A process id alone names
// the process that has it now, which may be a stranger that got it after the process
// that was meant had died. So a process is known here by its id, the moment of
// its start and the boot of the machine, and is signalled through a pidfd, which
// can never come to mean another.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// ErrGone means that a process has ended.
var ErrGone = errors.New("the process has ended")

// Identity names one process of all that ever ran on a machine.
type Identity struct {
	PID int `json:"pid"`
	// Start is when it started, in clock ticks since the boot.
	Start uint64 `json:"start"`
	// Boot is the id of the boot.
	Boot string `json:"boot"`
}

// Boot returns the id of the machine's present boot.
func Boot() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// Identify returns the identity of the process that has an id now.
func Identify(pid int) (Identity, error) {
	boot, err := Boot()
	if err != nil {
		return Identity{}, err
	}
	stat, err := ReadStat(pid)
	if err != nil {
		return Identity{}, err
	}
	return Identity{PID: pid, Start: stat.Starttime, Boot: boot}, nil
}

// clockTick is the length of a tick of /proc: USER_HZ is 100 on every
// architecture that Go runs Linux on.
const clockTick = 10 * time.Millisecond

// Stat is a process as /proc/<pid>/stat describes it.
type Stat struct{ procfs.ProcStat }

// Zombie reports whether the process has ended and was not waited for.
func (s Stat) Zombie() bool { return s.State == "Z" }

// CPU returns the time used by the process and by its children that it has waited
// for.
func (s Stat) CPU() time.Duration {
	return time.Duration(s.UTime+s.STime)*clockTick + time.Duration(s.CUTime+s.CSTime)*clockTick
}

// ReadStat returns the process that has an id now, or ErrGone.
func ReadStat(pid int) (Stat, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return Stat{}, readError(err)
	}
	stat, err := p.Stat()
	return Stat{stat}, readError(err)
}

func readError(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	if err != nil {
		return fmt.Errorf("read a process's state: %w", err)
	}
	return nil
}

// All returns every process there is.
func All() ([]Stat, error) {
	processes, err := procfs.AllProcs()
	if err != nil {
		return nil, fmt.Errorf("list the processes: %w", err)
	}
	var all []Stat
	for _, p := range processes {
		// One that ended meanwhile is no longer one of them.
		if stat, err := p.Stat(); err == nil {
			all = append(all, Stat{stat})
		}
	}
	return all, nil
}

// Descendants returns the children of a process, theirs, and so on, without the
// process itself.
func Descendants(of int) ([]Stat, error) {
	all, err := All()
	if err != nil {
		return nil, err
	}
	children := map[int][]Stat{}
	for _, stat := range all {
		children[stat.PPID] = append(children[stat.PPID], stat)
	}
	var found []Stat
	for queue := []int{of}; len(queue) > 0; queue = queue[1:] {
		found = append(found, children[queue[0]]...)
		for _, child := range children[queue[0]] {
			queue = append(queue, child.PID)
		}
	}
	return found, nil
}

// How often a process is looked at that shows no environment, execLook apart: one
// without arguments too is about to become another program, which takes
// microseconds, or on a busy machine until it is that process's turn; one with
// arguments has become it between two looks, or has an empty environment.
const (
	execLook   = time.Millisecond
	execLooks  = 2000
	emptyLooks = 10
)

// environRoom is more than the environment of a program may be, with its arguments,
// unless the limit of the stack is greater than Linux's default.
const environRoom = 2 << 20

// HasVariable tells whether a process was started with a variable ("KEY=value")
// in its environment. What may not be read has it not.
//
// While a process becomes another program (execve) it has neither environment nor
// arguments for a moment. So it is looked at again while it shows none, unless it
// has no program either: a kernel's thread has not.
func HasVariable(pid int, variable string) bool {
	folder := "/proc/" + strconv.Itoa(pid)
	for looks := 1; ; looks++ {
		raw, err := readAtOnce(folder + "/environ")
		if err != nil {
			return false
		}
		if len(raw) > 0 {
			return slices.ContainsFunc(bytes.Split(raw, []byte{0}), func(one []byte) bool { return string(one) == variable })
		}
		if _, err := os.Readlink(folder + "/exe"); err != nil {
			return false
		}
		args, err := os.ReadFile(folder + "/cmdline")
		if err != nil || len(args) > 0 && looks >= emptyLooks || looks >= execLooks {
			return false
		}
		time.Sleep(execLook)
	}
}

// readAtOnce reads an environment in one call: what is read in several may be the
// begin of one program's and the end of nothing.
func readAtOnce(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	for size := 16 << 10; ; size = environRoom {
		raw := make([]byte, size)
		n, err := file.ReadAt(raw, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if n < size || size == environRoom {
			return raw[:n], nil
		}
	}
}

// Handle is a hold on one process.
type Handle struct{ file *os.File }

// Open returns a hold on the process with an identity, or ErrGone.
func Open(id Identity) (*Handle, error) {
	boot, err := Boot()
	if err != nil {
		return nil, err
	}
	if id.PID <= 0 || boot != id.Boot {
		return nil, ErrGone
	}
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("hold process %d: %w", id.PID, err)
	}
	h := &Handle{file: os.NewFile(uintptr(fd), "pidfd")}
	// The pidfd holds the process that has the id now; if the start is right, that is
	// the one that was meant, and remains so.
	stat, err := ReadStat(id.PID)
	if err == nil && stat.Starttime != id.Start {
		err = ErrGone
	}
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// Close lets the process go.
func (h *Handle) Close() error { return h.file.Close() }

// Signal signals the process. It returns ErrGone if it has ended.
func (h *Handle) Signal(signal unix.Signal) error {
	conn, err := h.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal a process: %w", err)
	}
	var sent error
	if err := conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), signal, nil, 0) }); err != nil {
		return fmt.Errorf("signal a process: %w", err)
	}
	if errors.Is(sent, unix.ESRCH) {
		return ErrGone
	}
	if sent != nil {
		return fmt.Errorf("signal a process: %w", sent)
	}
	return nil
}

// Wait returns when the process has ended. It occupies no thread. One Wait at a
// time is allowed.
func (h *Handle) Wait(ctx context.Context) error {
	conn, err := h.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for a process: %w", err)
	}
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cut)
		// A deadline that has passed ends the read below.
		_ = h.file.SetReadDeadline(time.Unix(1, 0))
	})
	defer func() {
		if stop() {
			return
		}
		<-cut
		// The next Wait is not to be cut short.
		_ = h.file.SetReadDeadline(time.Time{})
	}()
	err = conn.Read(func(fd uintptr) bool {
		// A pidfd is readable once its process has ended.
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("wait for a process: %w", err)
	}
	return nil
}

// Kill kills the process with SIGKILL if it is there.
func Kill(id Identity) error {
	h, err := Open(id)
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	err = h.Signal(unix.SIGKILL)
	if errors.Is(err, ErrGone) {
		err = nil
	}
	return errors.Join(err, h.Close())
}
