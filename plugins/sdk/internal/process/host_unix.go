//go:build unix

package process

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watchHost calls gone when the process that started this one has died. The
// host holds the reading end of the pipe that is this process's standard
// output; the kernel closes it whatever the host dies of, which no parent id
// and no goodbye message could promise. The watch lasts until the process ends.
func watchHost(output *os.File, gone func()) error {
	info, err := output.Stat()
	if err != nil {
		return fmt.Errorf("look at standard output: %w", err)
	}
	if info.Mode()&os.ModeNamedPipe == 0 {
		return errors.New("standard output is not a pipe")
	}
	// go-plugin puts another file in the place of os.Stdout later, and a
	// collected os.File would close the pipe.
	fd, err := unix.FcntlInt(output.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("keep standard output: %w", err)
	}
	go func() {
		for {
			// Without any event asked for, poll tells of errors alone: here,
			// that there is no reader any longer.
			fds := []unix.PollFd{{Fd: int32(fd)}}
			n, err := unix.Poll(fds, -1)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || (n > 0 && fds[0].Revents != 0) {
				gone()
				return
			}
		}
	}()
	return nil
}
