//go:build linux

package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	line := "4711 (a) (b 1) S 12 4711 4700 0 -1 4194304 100 0 0 0 7 5 2 1 20 0 1 0 98765 1000 250 18446744073709551615 1 1\n"
	got, err := parseStat([]byte(line))
	want := Stat{PID: 4711, State: 'S', Parent: 12, Group: 4711, Session: 4700, CPU: 150 * time.Millisecond, Start: 98765, RSSPages: 250}
	if err != nil || got != want {
		t.Errorf("parseStat = %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "1", "1 (x)", "1 (x) S 1", "1 )x( S", "x (x) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1 1"} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q) = %+v, want an error", bad, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (init) S 0 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 5 1 1 1"))
	f.Add([]byte(")("))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := parseStat(raw); err == nil && len(raw) < 20 {
			t.Errorf("parseStat(%q) finds all fields", raw)
		}
	})
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
