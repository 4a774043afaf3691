package files_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/musterhq/muster/workerd/internal/files"
)

// runtimeDir returns a directory on a tmpfs.
func runtimeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "muster-files-test")
	if err != nil {
		t.Skipf("there is no tmpfs to write to: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func open(t *testing.T, dir string) *files.Store {
	t.Helper()
	s, err := files.Open(dir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func secret(target, data string) files.File {
	return files.File{Target: target, Data: []byte(data), UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Mode: 0o400}
}

// entries returns the paths below a directory.
func entries(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			all = append(all, path[len(dir)+1:])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestFilesHaveContentOwnerAndMode(t *testing.T) {
	dir := runtimeDir(t)
	s := open(t, dir)
	f := secret("/run/secrets/a", "one")
	if os.Getuid() == 0 {
		f.UID, f.GID = 1234, 5678
	}
	if s.Has("t1", f.Target) || s.Current("t1", f) {
		t.Error("a file is there before it was written")
	}
	if err := s.Write("t1", f); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(s.Path("t1", f.Target))
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	if info.Mode() != 0o400 || stat.Uid != f.UID || stat.Gid != f.GID || !s.Current("t1", f) {
		t.Errorf("mode %v, owner %d:%d, current %v", info.Mode(), stat.Uid, stat.Gid, s.Current("t1", f))
	}
	for name, other := range map[string]files.File{
		"content": secret(f.Target, "two"), "mode": {Target: f.Target, Data: f.Data, UID: f.UID, GID: f.GID, Mode: 0o444},
		"owner": {Target: f.Target, Data: f.Data, UID: f.UID + 1, GID: f.GID, Mode: 0o400},
	} {
		if s.Current("t1", other) {
			t.Errorf("a file with other %s counts as current", name)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "n1")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the node's directory: %v, %v; want mode 0700", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Dir(s.Path("t1", f.Target))); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("a directory of the task: %v, %v; want mode 0755", info.Mode(), err)
	}
}

// TestReadersSeeWholeFiles replaces a file while others read it.
func TestReadersSeeWholeFiles(t *testing.T) {
	s := open(t, runtimeDir(t))
	contents := [][]byte{bytes.Repeat([]byte("a"), 300_000), bytes.Repeat([]byte("b"), 200_000)}
	write := func(i int) {
		f := secret("/c", "")
		f.Data = contents[i%2]
		if err := s.Write("t1", f); err != nil {
			t.Error(err)
		}
	}
	write(0)
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				got, err := os.ReadFile(s.Path("t1", "/c"))
				if err != nil || !bytes.Equal(got, contents[0]) && !bytes.Equal(got, contents[1]) {
					t.Errorf("a reader sees %d bytes that were never written together: %v", len(got), err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for i := range 200 {
		write(i)
	}
	close(done)
	readers.Wait()
}

func TestNothingIsLeft(t *testing.T) {
	dir := runtimeDir(t)
	s := open(t, dir)
	for i := range 3 {
		id := fmt.Sprintf("t%d", i)
		if err := s.Write(id, secret("/run/secrets/a", "one")); err != nil {
			t.Fatal(err)
		}
		if err := s.AddSignal(id, "SIGHUP"); err != nil {
			t.Fatal(err)
		}
	}
	// The next worker knows one of the tasks.
	if err := os.WriteFile(filepath.Join(dir, "n1", ".new", "file123"), []byte("unfinished"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if err := s.Keep(map[string]bool{"t1": true}); err != nil {
		t.Fatal(err)
	}
	want := []string{"n1", "n1/t1", "n1/t1/run", "n1/t1/run/secrets", "n1/t1/run/secrets/a", "n1/t1.signals"}
	if got := entries(t, dir); !slices.Equal(got, want) {
		t.Errorf("after Keep there are %q, want %q", got, want)
	}
	if err := s.Remove("t1"); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, dir); len(got) > 0 {
		t.Errorf("after Remove there are %q", got)
	}
}

func TestSignalsOutliveTheWorker(t *testing.T) {
	dir := runtimeDir(t)
	s := open(t, dir)
	for _, signal := range []string{"SIGHUP", "SIGUSR1", "SIGHUP"} {
		if err := s.AddSignal("t1", signal); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir)
	if got, err := s.Signals("t1"); err != nil || !slices.Equal(got, []string{"SIGHUP", "SIGUSR1"}) {
		t.Errorf("Signals = %q, %v", got, err)
	}
	if err := s.ClearSignals("t1"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Signals("t1"); err != nil || len(got) > 0 {
		t.Errorf("Signals = %q, %v after ClearSignals", got, err)
	}
}

func TestDirectoriesOfOthersAreRefused(t *testing.T) {
	dir := runtimeDir(t)
	if err := os.Mkdir(filepath.Join(dir, "n1"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "n1"), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := files.Open(dir, "n1"); err == nil {
		t.Error("a directory that all users can write to is accepted")
	}
	s := open(t, runtimeDir(t))
	for _, id := range []string{"", ".", "..", "../t", "a/b", ".new"} {
		if err := s.Write(id, secret("/a", "x")); err == nil {
			t.Errorf("task id %q is accepted", id)
		}
	}
	if _, err := files.Open(dir, "../n"); err == nil {
		t.Error("a node id that leads elsewhere is accepted")
	}
}

// TestRuntimeDirectoryGetsTmpfs has a directory on a disk.
func TestRuntimeDirectoryGetsTmpfs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting takes root")
	}
	dir := t.TempDir()
	before := deviceOf(t, dir)
	s := open(t, filepath.Join(dir, "runtime"))
	t.Cleanup(func() {
		if err := syscall.Unmount(filepath.Join(dir, "runtime"), 0); err != nil {
			t.Error(err)
		}
	})
	if err := s.Write("t1", secret("/a", "x")); err != nil {
		t.Fatal(err)
	}
	if deviceOf(t, s.Path("t1", "/a")) == before {
		t.Error("a file was written to the disk")
	}
	// Another worker of the machine uses the same tmpfs.
	if _, err := files.Open(filepath.Join(dir, "runtime"), "n2"); err != nil {
		t.Fatal(err)
	}
	if !s.Has("t1", "/a") {
		t.Error("the files of the first worker are hidden")
	}
}

func deviceOf(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(info.Sys().(*syscall.Stat_t).Dev)
}
