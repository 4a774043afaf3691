package workerd_test

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"

	"github.com/musterhq/muster/workerd"
	"github.com/musterhq/muster/workerd/taskdb"
)

// TestDataDirectoryInUseNamesTheFlag: a second worker on a data directory ends with an
// error that says what to give it.
func TestDataDirectoryInUseNamesTheFlag(t *testing.T) {
	t.Parallel()
	// The second worker waits some seconds for the lock.
	synctest.Test(t, testDataDirectoryInUse)
}

func testDataDirectoryInUse(t *testing.T) {
	cfg := workerd.DefaultConfig()
	cfg.DataDir, cfg.Dispatchers = t.TempDir(), []string{"127.0.0.1:1"}
	db, _, err := taskdb.Open(filepath.Join(cfg.DataDir, "tasks.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	w, err := workerd.New(workerd.Env{Dial: func(string) (*grpc.ClientConn, error) { panic("it speaks to a dispatcher") }}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = w.Run(t.Context())
	for _, want := range []string{cfg.DataDir, "--data-dir"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run = %v, want an error that names %s", err, want)
		}
	}
}
