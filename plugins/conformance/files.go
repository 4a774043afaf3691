package conformance

import (
	"os"
	"path/filepath"

	"google.golang.org/grpc/codes"

	executorv1 "github.com/musterhq/muster/api/muster/executor/v1"
)

// secretPath is where a file is in the tasks of the suite.
const secretPath = "/run/secrets/muster-conformance"

// folder is the directory in which a worker would hold the files of a task.
type folder struct {
	*suite
	dir string
}

// folder makes an empty one.
func (s *suite) folder() folder {
	s.Helper()
	dir, err := os.MkdirTemp("", "muster-files")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	return folder{s, dir}
}

// file names a file of the folder, as a task sees it under a path.
func (f folder) file(target string) *executorv1.TaskFile {
	return &executorv1.TaskFile{Source: filepath.Join(f.dir, target), Target: target, Mode: 0o444, Secret: true}
}

// write replaces the content of a file as a worker does.
func (f folder) write(file *executorv1.TaskFile, content string) {
	f.Helper()
	next := filepath.Join(f.dir, ".new")
	err := os.MkdirAll(filepath.Dir(file.GetSource()), 0o755)
	if err == nil {
		err = os.WriteFile(next, []byte(content), 0o444)
	}
	if err == nil {
		err = os.Rename(next, file.GetSource())
	}
	if err != nil {
		f.Fatal(err)
	}
}

// files checks that a task sees its files, and other content after Update; that it is not
// prepared without them, and that the worker's own files are left alone.
func (s *suite) files() {
	if !s.has(files) {
		return
	}
	folder := s.folder()
	file := folder.file(secretPath)
	early := s.on(s.task(Behavior{Forever: true}))
	early.task.Files = []*executorv1.TaskFile{file}
	if early.tryPrepare() == nil {
		if _, err := early.tryStart(); err == nil {
			s.Errorf("a task starts although its file %s is not there", file.GetSource())
		}
	}
	early.removed()

	folder.write(file, "first\n")
	c := s.on(s.task(Behavior{Forever: true, Says: []string{ready}, Reads: []string{secretPath}}))
	c.task.Files = []*executorv1.TaskFile{file}
	c.prepare()
	c.startReady()
	if s.has("logs") {
		c.line("first")
	}
	folder.write(file, "second\n")
	if s.has("update") {
		for _, when := range []string{"of a task with another file", "repeated"} {
			if err := c.tryUpdate(); err != nil {
				s.Fatalf("Update %s: %v", when, err)
			}
		}
		s.Plugin.Restart()
		if err := c.tryUpdate(); err != nil {
			s.Fatalf("Update by a new process: %v", err)
		}
	}
	if s.has("logs") && s.has(signals) {
		c.signal("SIGHUP")
		c.line("second")
	}
	c.running()
	c.removed()
	if _, err := os.Stat(file.GetSource()); err != nil {
		s.Errorf("after Remove the worker's file is gone: %v", err)
	}
}

// trySignal calls Signal.
func (c *calls) trySignal(signal string) error {
	_, err := call(c.suite, c.Plugin.Service().Signal, &executorv1.SignalRequest{TaskId: c.task.GetId(), Handle: c.handle, Signal: signal})
	return err
}

func (c *calls) signal(signal string) {
	c.Helper()
	if err := c.trySignal(signal); err != nil {
		c.Fatalf("Signal %s: %v", signal, err)
	}
}

// signals checks that a signal reaches the main process of a task.
func (s *suite) signals() {
	stranger := s.on(s.task(Behavior{}))
	if !s.has(signals) {
		if err := stranger.trySignal("SIGHUP"); code(err) != codes.Unimplemented {
			s.Errorf("Signal without the capability = %v, want UNIMPLEMENTED", err)
		}
		return
	}
	if err := stranger.trySignal("SIGHUP"); code(err) != codes.NotFound {
		s.Errorf("Signal to an unknown task = %v, want NOT_FOUND", err)
	}
	c := s.on(s.task(Behavior{Forever: true, Says: []string{ready}, Reads: []string{"/etc/hosts"}}))
	c.prepare()
	if c.trySignal("SIGHUP") == nil {
		s.Errorf("Signal to a task that was not started succeeds")
	}
	c.startReady()
	if c.trySignal("SIGNONE") == nil {
		s.Errorf("Signal with a name that no signal has succeeds")
	}
	c.signal("SIGHUP")
	c.running()
	s.Plugin.Restart()
	c.handle = nil
	c.signal("TERM")
	c.wait()
	if c.trySignal("SIGHUP") == nil {
		s.Errorf("Signal to a task that has ended succeeds")
	}
	c.removed()
}
