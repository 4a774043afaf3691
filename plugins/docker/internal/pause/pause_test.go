//go:build linux

package pause_test

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/musterhq/muster/plugins/docker/internal/pause"
)

// emulators are programs that run those of other architectures.
var emulators = map[string]string{"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static"}

// process is the program in a root directory of its own.
type process struct {
	root   string
	input  io.WriteCloser
	output *bufio.Reader
}

func start(t *testing.T, architecture string) *process {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the program writes to /etc, so that the test needs a root directory of its own, and so root")
	}
	p := &process{root: t.TempDir()}
	for name, content := range map[string][]byte{"etc/resolv.conf": []byte("old"), "etc/hosts": []byte("old"), "pause": pause.Program(architecture)} {
		path := filepath.Join(p.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{pause.Path}
	if architecture != runtime.GOARCH {
		found, err := exec.LookPath(emulators[architecture])
		if err != nil {
			t.Skipf("%s is not installed", emulators[architecture])
		}
		emulator, err := os.ReadFile(found)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p.root, "emulator"), emulator, 0o755); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"/emulator"}, args...)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: p.root}
	cmd.Dir = "/"
	var err error
	if p.input, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.output = bufio.NewReader(output)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
	return p
}

// send sends bytes and waits for an answer.
func (p *process) send(t *testing.T, data []byte, want string) {
	t.Helper()
	if _, err := p.input.Write(data); err != nil {
		t.Fatal(err)
	}
	if got, err := p.output.ReadString('\n'); err != nil || got != want+"\n" {
		t.Fatalf("answer = %q, %v; want %q", got, err, want)
	}
}

// wrote checks what is in the files.
func (p *process) wrote(t *testing.T, resolvConf, hosts string) {
	t.Helper()
	for name, want := range map[string]string{"resolv.conf": resolvConf, "hosts": hosts} {
		if got, err := os.ReadFile(filepath.Join(p.root, "etc", name)); err != nil || string(got) != want {
			t.Errorf("%s = %.80q, %v; want %.80q", name, got, err, want)
		}
	}
}

func record(t *testing.T, resolvConf, hosts, token string) []byte {
	t.Helper()
	made, err := pause.Record(resolvConf, hosts, token)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestProgramWritesWholeRecordsOnly(t *testing.T) {
	t.Parallel()
	for _, architecture := range []string{"amd64", "arm64"} {
		t.Run(architecture, func(t *testing.T) {
			t.Parallel()
			p := start(t, architecture)
			p.send(t, record(t, "nameserver 169.254.1.1\n", "10.64.0.2 db\n", "one"), "one")
			p.wrote(t, "nameserver 169.254.1.1\n", "10.64.0.2 db\n")

			// A record that was cut off, and bytes outside of records.
			cut := record(t, "lost", "lost", "lost")
			p.send(t, append(append([]byte("noise"), cut[:len(cut)-1]...), record(t, "second", "", "two")...), "two")
			p.wrote(t, "second", "10.64.0.2 db\n")

			// The most that there can be, and more than that.
			large := strings.Repeat("x", pause.MaxFiles/2)
			p.send(t, record(t, large, large, "three"), "three")
			p.wrote(t, large, large)
			tooLarge := []byte("\x00" + strings.Repeat(large, 5) + "\x01\x01four\n\x02")
			p.send(t, append(tooLarge, record(t, "fifth", "fifth", "five")...), "five")
			p.wrote(t, "fifth", "fifth")
		})
	}
}

func TestRecordRefusesWhatTheProgramCannotTake(t *testing.T) {
	t.Parallel()
	for name, test := range map[string][2]string{
		"end of a record": {"a\x02", ""}, "separator": {"", "a\x01"}, "begin": {"\x00", ""},
		"too much": {strings.Repeat("x", pause.MaxFiles), "x"},
	} {
		if _, err := pause.Record(test[0], test[1], "t"); err == nil {
			t.Errorf("%s: Record takes it", name)
		}
	}
}
