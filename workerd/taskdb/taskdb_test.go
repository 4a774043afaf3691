package taskdb_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	networkv1 "github.com/musterhq/muster/api/muster/network/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/workerd/taskdb"
)

// opened is an open database with what it held.
type opened struct {
	*taskdb.DB
	*taskdb.Contents
}

func open(t testing.TB, path string) opened {
	t.Helper()
	db, contents, err := taskdb.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return opened{db, contents}
}

func closeDB(t testing.TB, db opened) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// spec returns a task spec and its digest.
func spec(n int) map[string]*musterv1.TaskSpec {
	return map[string]*musterv1.TaskSpec{
		fmt.Sprint("digest", n): {Runtime: &musterv1.TaskSpec_Generic{Generic: &musterv1.GenericRuntime{Kind: fmt.Sprint("kind", n)}}},
	}
}

func assigned(id string, n int) *dispatcherv1.AssignedTask {
	return &dispatcherv1.AssignedTask{Id: id, ServiceName: "web", Slot: 7, SpecDigest: []byte(fmt.Sprint("digest", n)), DesiredState: musterv1.TaskState_RUNNING}
}

func reported(id string, state musterv1.TaskState) *dispatcherv1.ReportedStatus {
	return &dispatcherv1.ReportedStatus{TaskId: id, Status: &musterv1.TaskStatus{State: state, Message: state.String()}}
}

func apply(t testing.TB, db opened, specs map[string]*musterv1.TaskSpec, changes ...taskdb.Change) {
	t.Helper()
	if err := db.Apply(specs, changes...); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsWrittenIsThereAfterwards(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tasks.db")
	db := open(t, path)
	if len(db.Tasks) != 0 || len(db.Specs) != 0 || db.SetAside != "" {
		t.Errorf("a new database holds %v", db.Contents)
	}
	apply(t, db, spec(1),
		taskdb.Change{ID: "a", Assigned: assigned("a", 1)},
		taskdb.Change{ID: "b", Assigned: assigned("b", 1)},
		taskdb.Change{ID: "c", Assigned: assigned("c", 1)})
	apply(t, db, spec(2))
	apply(t, db, nil, taskdb.Change{ID: "a", Status: reported("a", musterv1.TaskState_PREPARING), Handle: []byte("h1"), Executor: "docker"})
	apply(t, db, nil, taskdb.Change{ID: "a", Status: reported("a", musterv1.TaskState_RUNNING)})
	apply(t, db, nil, taskdb.Change{ID: "b", Withdrawn: true}, taskdb.Change{ID: "c", Forget: true})
	closeDB(t, db)

	db = open(t, path)
	want := map[string]*taskdb.Record{
		"a": {Assigned: assigned("a", 1), Status: reported("a", musterv1.TaskState_RUNNING), Handle: []byte("h1"), Executor: "docker"},
		"b": {Assigned: assigned("b", 1), Withdrawn: true},
	}
	if diff := cmp.Diff(want, db.Tasks, protocmp.Transform()); diff != "" {
		t.Errorf("tasks differ (-want +got):\n%s", diff)
	}
	if got := slices.Sorted(maps.Keys(db.Specs)); !slices.Equal(got, []string{"digest1", "digest2"}) {
		t.Errorf("specs = %v", got)
	}
	if err := db.DropSpecs(map[string]bool{"digest1": true}); err != nil {
		t.Fatal(err)
	}
	closeDB(t, db)
	db = open(t, path)
	if got := slices.Sorted(maps.Keys(db.Specs)); !slices.Equal(got, []string{"digest1"}) {
		t.Errorf("specs = %v", got)
	}
	closeDB(t, db)
}

// TestFilesOfEarlierVersionsAreOpened takes away what an earlier version did not write,
// and leaves behind what it did not remove. Opening writes nothing.
func TestFilesOfEarlierVersionsAreOpened(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tasks.db")
	db := open(t, path)
	apply(t, db, spec(1), taskdb.Change{ID: "a", Assigned: assigned("a", 1), Executor: "docker"})
	closeDB(t, db)
	edit := func(change func(tx *bbolt.Tx) error) {
		bolt, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(bolt.Update(change), bolt.Close()); err != nil {
			t.Fatal(err)
		}
	}
	want := func(executor string) {
		t.Helper()
		db = open(t, path)
		if r := db.Tasks["a"]; db.SetAside != "" || r == nil || r.Executor != executor {
			t.Errorf("task a: %v, set aside as %q (%v), want executor %q", r, db.SetAside, db.Damage, executor)
		}
	}
	edit(func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("executors")) })
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want("")
	closeDB(t, db)
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("opening the file wrote to it, which a full disk does not allow (%v)", err)
	}
	want("")
	apply(t, db, nil, taskdb.Change{ID: "b", Forget: true})
	apply(t, db, nil, taskdb.Change{ID: "a", Executor: "process"})
	closeDB(t, db)
	edit(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("executors")).Put([]byte("gone"), taskdb.Seal([]byte("docker")))
	})
	want("process")
	closeDB(t, db)
}

// What is said late of a task that was forgotten leaves nothing behind that would
// pass for damage.
func TestAForgottenTaskStaysForgotten(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tasks.db")
	db := open(t, path)
	apply(t, db, spec(1), taskdb.Change{ID: "a", Assigned: assigned("a", 1)}, taskdb.Change{ID: "b", Assigned: assigned("b", 1)})
	apply(t, db, nil, taskdb.Change{ID: "a", Forget: true})
	apply(t, db, nil, taskdb.Change{ID: "a", Withdrawn: true},
		taskdb.Change{ID: "a", Status: reported("a", musterv1.TaskState_SHUTDOWN), Handle: []byte("h")})
	closeDB(t, db)
	db = open(t, path)
	if db.SetAside != "" || len(db.Tasks) != 1 {
		t.Errorf("tasks: %v; set aside for %v", db.Tasks, db.Damage)
	}
	closeDB(t, db)
}

func TestManyWritersShareSyncs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tasks.db")
	db := open(t, path)
	const tasks = 200
	var changes []taskdb.Change
	for i := range tasks {
		changes = append(changes, taskdb.Change{ID: fmt.Sprint(i), Assigned: assigned(fmt.Sprint(i), 1)})
	}
	apply(t, db, spec(1), changes...)
	before, err := db.Commits()
	if err != nil {
		t.Fatal(err)
	}
	// All come while a commit is under way.
	release := db.Hold()
	var wg sync.WaitGroup
	for i := range tasks {
		wg.Go(func() {
			id := fmt.Sprint(i)
			if err := db.Apply(nil, taskdb.Change{ID: id, Status: reported(id, musterv1.TaskState_RUNNING)}); err != nil {
				t.Error(err)
			}
		})
	}
	for db.Waiting() < tasks {
		runtime.Gosched()
	}
	release()
	wg.Wait()
	if after, err := db.Commits(); err != nil || after-before != 1 {
		t.Errorf("%d commits for %d tasks (%v), want 1", after-before, tasks, err)
	}
	closeDB(t, db)
	db = open(t, path)
	for id, record := range db.Tasks {
		if record.Status.GetStatus().GetState() != musterv1.TaskState_RUNNING {
			t.Errorf("%s: %v", id, record.Status)
		}
	}
	closeDB(t, db)
}

func TestADatabaseHasOneUser(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tasks.db")
	db := open(t, path)
	if _, _, err := taskdb.Open(path); !errors.Is(err, taskdb.ErrInUse) {
		t.Errorf("second open: %v, want ErrInUse", err)
	}
	closeDB(t, db)
}

func TestANewerDatabaseIsLeftAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tasks.db")
	closeDB(t, open(t, path))
	bolt, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := bolt.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("schema"), taskdb.Seal([]byte("2")))
	}); err != nil {
		t.Fatal(err)
	}
	if err := bolt.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := taskdb.Open(path); !errors.Is(err, taskdb.ErrNewer) {
		t.Errorf("open: %v, want ErrNewer", err)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed (%v)", err)
	}
}

// filled writes a database with some records and returns its file's content.
func filled(t testing.TB) []byte {
	path := filepath.Join(t.TempDir(), "tasks.db")
	db := open(t, path)
	var changes []taskdb.Change
	for i := range 60 {
		id := fmt.Sprintf("task%02d", i)
		changes = append(changes, taskdb.Change{
			ID: id, Assigned: assigned(id, 1), Status: reported(id, musterv1.TaskState_RUNNING), Handle: bytes.Repeat([]byte{1, 2, 3}, 50),
		})
	}
	apply(t, db, spec(1), changes...)
	apply(t, db, nil, changes[:20]...)
	closeDB(t, db)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestADamagedFileIsSetAsideAndNeverTrusted(t *testing.T) {
	t.Parallel()
	whole := filled(t)
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(r *rapid.T) {
		n++
		content := slices.Clone(whole)
		switch rapid.SampledFrom([]string{"cut", "flip", "zero", "garbage"}).Draw(r, "damage") {
		case "cut":
			content = content[:rapid.IntRange(0, len(content)-1).Draw(r, "length")]
		case "flip":
			at := rapid.IntRange(0, len(content)-1).Draw(r, "at")
			content[at] ^= 1 << rapid.IntRange(0, 7).Draw(r, "bit")
		case "zero":
			at := rapid.IntRange(0, len(content)-1).Draw(r, "at")
			clear(content[at:min(at+rapid.IntRange(1, 5000).Draw(r, "length"), len(content))])
		case "garbage":
			at := rapid.IntRange(0, len(content)-1).Draw(r, "at")
			copy(content[at:], rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(r, "bytes"))
		}
		path := filepath.Join(dir, fmt.Sprint(n))
		if err := os.WriteFile(path, content, 0o600); err != nil {
			r.Fatal(err)
		}
		db, contents, err := taskdb.Open(path)
		if errors.Is(err, taskdb.ErrNewer) {
			r.Fatal("a damaged file is taken for a newer one")
		}
		if err != nil {
			r.Fatalf("open: %v", err)
		}
		if contents.SetAside != "" {
			if contents.Damage == nil || len(contents.Tasks) != 0 {
				r.Errorf("set aside, and yet %v", contents)
			}
			if aside, err := os.ReadFile(contents.SetAside); err != nil || len(aside) < len(content) {
				r.Errorf("what was set aside is %d bytes of %d (%v)", len(aside), len(content), err)
			}
		}
		// What was read is what was written, as of some commit.
		for id, record := range contents.Tasks {
			want := &taskdb.Record{
				Assigned: assigned(id, 1), Status: reported(id, musterv1.TaskState_RUNNING), Handle: bytes.Repeat([]byte{1, 2, 3}, 50),
			}
			if diff := cmp.Diff(want, record, protocmp.Transform()); diff != "" {
				r.Errorf("task %s differs (-want +got):\n%s", id, diff)
			}
		}
		// What was opened can be written to, and is whole afterwards.
		for round := range 2 {
			var changes []taskdb.Change
			for i := range 10 {
				id := fmt.Sprintf("more%d.%d", round, i)
				changes = append(changes, taskdb.Change{ID: id, Assigned: assigned(id, 2), Handle: bytes.Repeat([]byte{7}, 3000)})
			}
			if err := db.Apply(spec(2), changes...); err != nil {
				r.Fatalf("write: %v", err)
			}
		}
		before := len(contents.Tasks)
		if err := db.Close(); err != nil {
			r.Fatal(err)
		}
		db, contents, err = taskdb.Open(path)
		if err != nil {
			r.Fatalf("open again: %v", err)
		}
		if contents.SetAside != "" || len(contents.Tasks) != before+20 {
			r.Errorf("%d tasks, want %d (%v)", len(contents.Tasks), before+20, contents.Damage)
		}
		if err := db.Close(); err != nil {
			r.Fatal(err)
		}
	})
}

// What is not a database, or not Muster's, is set aside as it is, and a message says
// what was wrong.
func TestAForeignFileIsSetAside(t *testing.T) {
	t.Parallel()
	foreign := filepath.Join(t.TempDir(), "foreign.db")
	bolt, err := bbolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := bolt.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket([]byte("another program's"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := bolt.Close(); err != nil {
		t.Fatal(err)
	}
	others, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	whole := filled(t)
	for name, tt := range map[string]struct {
		content []byte
		want    string
	}{
		"empty":             {nil, "it is empty"},
		"text":              {[]byte("Dear worker,\n"), "invalid database"},
		"much text":         {bytes.Repeat([]byte("Dear worker,\n"), 10_000), "invalid database"},
		"another's":         {others, `a bucket "another program's" and none called "meta"`},
		"its first page":    {whole[:4096], "file size too small"},
		"cut off":           {whole[:len(whole)/2], "tasks.db"},
		"only zeroes":       {make([]byte, len(whole)), "invalid database"},
		"an older database": {append([]byte("SQLite format 3\x00"), make([]byte, 8176)...), "invalid database"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "tasks.db")
			if err := os.WriteFile(path, tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
			db := open(t, path)
			defer closeDB(t, db)
			if db.SetAside == "" || db.Damage == nil || !strings.Contains(db.Damage.Error(), tt.want) {
				t.Errorf("set aside as %q for %v, want %q", db.SetAside, db.Damage, tt.want)
			}
			if aside, err := os.ReadFile(db.SetAside); err != nil || !bytes.HasPrefix(aside, tt.content) {
				t.Errorf("what was set aside is not what was there (%v)", err)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, message := range taskdb.Samples() {
		f.Add(message)
	}
	f.Fuzz(func(t *testing.T, sealed []byte) {
		if err := taskdb.Decode(sealed); err == nil && len(sealed) < 4 {
			t.Errorf("%x has no checksum and passes", sealed)
		}
		// With a right checksum the content is what is looked at.
		_ = taskdb.Decode(taskdb.Seal(sealed))
	})
}

func BenchmarkApply(b *testing.B) {
	for _, writers := range []int{1, 100} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			db := open(b, filepath.Join(b.TempDir(), "tasks.db"))
			apply(b, db, spec(1), taskdb.Change{ID: "t", Assigned: assigned("t", 1)})
			b.SetParallelism(writers)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := db.Apply(nil, taskdb.Change{ID: "t", Status: reported("t", musterv1.TaskState_RUNNING)}); err != nil {
						b.Error(err)
					}
				}
			})
			closeDB(b, db)
		})
	}
}

func TestPlacesAndNetworksAreRead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tasks.db")
	db, _, err := taskdb.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	assigned := &dispatcherv1.AssignedTask{Id: "a", SpecDigest: []byte("d")}
	specs := map[string]*musterv1.TaskSpec{"d": {}}
	objects := &dispatcherv1.Assignments{Objects: []*dispatcherv1.AssignedObject{{Object: &dispatcherv1.AssignedObject_Network{Network: &networkv1.Network{Id: "n"}}}}}
	for _, err := range []error{
		db.Apply(specs, taskdb.Change{ID: "a", Assigned: assigned, Place: []byte("first")}, taskdb.Change{ID: "unknown", Place: []byte("x")}),
		db.Apply(nil, taskdb.Change{ID: "a", Place: []byte("second")}),
		db.ApplyNetworks(map[string]*dispatcherv1.Assignments{"n": objects, "m": objects}),
		db.ApplyNetworks(map[string]*dispatcherv1.Assignments{"m": nil}),
		db.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	db, contents, err := taskdb.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(contents.Tasks["a"].Place); got != "second" {
		t.Errorf("place = %q", got)
	}
	if len(contents.Networks) != 1 || !proto.Equal(contents.Networks["n"], objects) {
		t.Errorf("networks = %v", contents.Networks)
	}
	if err := errors.Join(db.Apply(nil, taskdb.Change{ID: "a", NoPlace: true}), db.Close()); err != nil {
		t.Fatal(err)
	}
	db, contents, err = taskdb.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := contents.Tasks["a"].Place; got != nil {
		t.Errorf("place = %q, want none", got)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
