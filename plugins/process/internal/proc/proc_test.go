//go:build linux

package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// TestReadStatDescribesProcess reads the state of a process whose name looks like the
// end of the name and the fields after it.
func TestReadStatDescribesProcess(t *testing.T) {
	t.Parallel()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "(a) (b 1) S")
	if err := os.Symlink(sleep, name); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), name, "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	stat, err := ReadStat(pid)
	if err != nil || stat.PID != pid || stat.Comm != "(a) (b 1) S" || stat.PPID != os.Getpid() || stat.Zombie() {
		t.Errorf("ReadStat = %+v, %v; want process %d", stat, err, pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var zombie unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &zombie, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if stat, err := ReadStat(pid); err != nil || !stat.Zombie() {
		t.Errorf("ReadStat after the end = %+v, %v; want a zombie", stat, err)
	}
	if err := ignoreKilled(cmd.Wait()); err != nil {
		t.Error(err)
	}
	if _, err := ReadStat(pid); !errors.Is(err, ErrGone) {
		t.Errorf("ReadStat after Wait = %v, want ErrGone", err)
	}
}

func TestReadStatCountsMemory(t *testing.T) {
	t.Parallel()
	if stat, err := ReadStat(os.Getpid()); err != nil || stat.ResidentMemory() < 1<<20 {
		t.Errorf("this process has %d bytes, %v; want more than 1 MiB", stat.ResidentMemory(), err)
	}
}

func TestCPUTimeIncludesChildren(t *testing.T) {
	t.Parallel()
	stat := Stat{procfs.ProcStat{UTime: 7, STime: 5, CUTime: 2, CSTime: 1}}
	if got := stat.CPU(); got != 150*time.Millisecond {
		t.Errorf("CPU = %v, want 150ms", got)
	}
}

func TestAnotherProcessWithTheSameIDIsNotTaken(t *testing.T) {
	t.Parallel()
	id, err := Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for name, wrong := range map[string]Identity{
		"another start": {PID: id.PID, Start: id.Start + 1, Boot: id.Boot},
		"another boot":  {PID: id.PID, Start: id.Start, Boot: "x"},
		"no process":    {Boot: id.Boot},
	} {
		if h, err := Open(wrong); !errors.Is(err, ErrGone) {
			t.Errorf("%s: Open = %v, %v; want ErrGone", name, h, err)
		}
		// This would end the test.
		if err := Kill(wrong); err != nil {
			t.Errorf("%s: Kill = %v", name, err)
		}
	}
}

// TestHasVariableWhileItBecomesAnother looks at a process that becomes another
// program all the time, and has the variable all the time.
func TestHasVariableWhileItBecomesAnother(t *testing.T) {
	t.Parallel()
	const again = `exec /bin/sh -c "$AGAIN"`
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", again)
	cmd.Env = []string{"AGAIN=" + again, "MARK=here"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for n := range 2000 {
		if !HasVariable(cmd.Process.Pid, "MARK=here") {
			t.Errorf("at look %d the process does not have the variable", n)
			break
		}
	}
	if err := errors.Join(cmd.Process.Kill(), ignoreKilled(cmd.Wait())); err != nil {
		t.Error(err)
	}
}

// ignoreKilled is nil for the end of a process that was killed.
func ignoreKilled(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

func TestWaitAndSignal(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	cmd.Env = []string{"MARK=here"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	h, err := Open(id)
	if err != nil {
		t.Fatal(err)
	}
	if !HasVariable(id.PID, "MARK=here") || HasVariable(id.PID, "MARK=her") {
		t.Error("HasVariable does not tell the process's environment")
	}
	if children, err := Descendants(os.Getpid()); err != nil || len(children) == 0 {
		t.Errorf("Descendants = %v, %v; want the command", children, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := h.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait for a running process = %v", err)
	}
	if err := h.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := h.Wait(t.Context()); err != nil {
		t.Errorf("Wait = %v", err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the command ended well")
	}
	if err := h.Signal(unix.SIGTERM); !errors.Is(err, ErrGone) {
		t.Errorf("Signal of an ended process = %v, want ErrGone", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if _, err := ReadStat(id.PID); !errors.Is(err, ErrGone) {
		t.Errorf("ReadStat of an ended process = %v, want ErrGone", err)
	}
}
