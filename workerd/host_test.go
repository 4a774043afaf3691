package workerd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/null"
	"github.com/musterhq/muster/plugins/sdk"
	"github.com/musterhq/muster/workerd"
	"github.com/musterhq/muster/workerd/executor"
	"github.com/musterhq/muster/workerd/executor/contractv1"
)

// host is the machine of a worker in a bubble: a disk on which the worker and its
// null executor keep what they know, and a dispatcher.
type host struct {
	t          *testing.T
	network    *network
	dispatcher *dispatcher
	dataDir    string
	node       *node
	// logs holds what all workers logged.
	logs *observer.ObservedLogs
	log  zapcore.Core
}

// filler is a file in a data directory that fills the disk. It does not survive kill.
const filler = "filler"

func newHost(t *testing.T, dataDir string) *host {
	h := &host{t: t, network: newNetwork(), dataDir: dataDir}
	h.dispatcher, _ = h.network.serve(t, "d1:1")
	h.log, h.logs = observer.New(zap.WarnLevel)
	return h
}

// begin starts a worker and returns its session, which has not been welcomed.
func (h *host) begin() *session {
	h.t.Helper()
	h.node = h.run()
	return h.dispatcher.await(h.t)
}

// run starts a worker with an executor that reads from the disk which tasks run.
func (h *host) run() *node {
	h.t.Helper()
	e, err := null.New(null.Config{StateDir: filepath.Join(h.dataDir, "executors", "null")})
	if err != nil {
		h.t.Fatal(err)
	}
	set, err := executor.NewFixed(h.t.Context(), contractv1.FromServer(sdk.NewServer(e)))
	if err != nil {
		h.t.Fatal(err)
	}
	return startLogging(h.t, h.network, set, zap.New(h.log), func(cfg *workerd.Config) { cfg.NodeID, cfg.DataDir = "", h.dataDir })
}

// kill ends worker and executor as they are: the next worker finds, in another
// directory, the disk as it is now. What they still do after that it does not see.
func (h *host) kill(dataDir string) {
	h.t.Helper()
	synctest.Wait()
	err := filepath.WalkDir(h.dataDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(h.dataDir, path)
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			return os.MkdirAll(filepath.Join(dataDir, name), 0o700)
		case name == filler:
			return nil
		}
		return copySparse(filepath.Join(dataDir, name), path)
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.node.stop()
	h.dataDir = dataDir
}

// copySparse copies a file and leaves out blocks of zeros, so that the copy does not take
// room that the original never had.
func copySparse(to, from string) error {
	const block = 4 << 10
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	err = f.Truncate(int64(len(content)))
	for at := 0; at < len(content) && err == nil; at += block {
		if part := content[at:min(at+block, len(content))]; !bytes.Equal(part, make([]byte, len(part))) {
			_, err = f.WriteAt(part, int64(at))
		}
	}
	return errors.Join(err, f.Close())
}

// killAndBegin kills worker and executor, starts them again, and returns the new
// session, which has not been welcomed.
func (h *host) killAndBegin() *session {
	h.t.Helper()
	h.kill(h.t.TempDir())
	// A task that is started again has another time of its start.
	settle(time.Millisecond)
	return h.begin()
}

// started returns the times at which the tasks on the disk were started.
func (h *host) started() map[string]time.Time {
	h.t.Helper()
	all := map[string]time.Time{}
	for id := range held(h.t, h.dataDir) {
		if at := startedAt(h.t, h.dataDir, id); !at.IsZero() {
			all[id] = at
		}
	}
	return all
}

// wantRunning fails the test unless tasks run and have no error.
func (s *session) wantRunning(tasks []assignment) {
	s.t.Helper()
	for _, task := range tasks {
		if got := s.state(task.Id); got.GetState() != running || got.GetError() != "" {
			s.t.Errorf("task %s: %v, want it running without an error", task.Id, got)
		}
	}
}

// allAre reports whether all tasks were reported to be in a state.
func (s *session) allAre(state TaskState, tasks []assignment) bool {
	for _, task := range tasks {
		if s.state(task.Id).GetState() != state {
			return false
		}
	}
	return true
}

// held returns the tasks that the null executor of a data directory holds, and what
// it remembers of each.
func held(t *testing.T, dataDir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dataDir, "executors", "null", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			// It has just been removed.
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))] = string(content)
	}
	return all
}

// startedAt returns when the null executor started a task; it is zero if it did not.
func startedAt(t *testing.T, dataDir, id string) time.Time {
	t.Helper()
	var record struct{ Started time.Time }
	if content := held(t, dataDir)[id]; content != "" {
		if err := json.Unmarshal([]byte(content), &record); err != nil {
			t.Fatal(err)
		}
	}
	return record.Started
}
