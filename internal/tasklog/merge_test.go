package tasklog_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/tasklog"
)

// patience is that of all tests.
const patience = time.Second

// written is a line of a task, so many milliseconds after the epoch.
func written(task string, ms int64) *musterv1.LogMessage {
	return &musterv1.LogMessage{TaskId: task, Timestamp: timestamppb.New(time.UnixMilli(ms)), Data: []byte(fmt.Sprint(ms))}
}

// lines emits lines, after a pause each.
func lines(pause time.Duration, all ...*musterv1.LogMessage) tasklog.Source {
	return func(ctx context.Context, emit func(*musterv1.LogMessage) error) error {
		for _, line := range all {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := emit(line); err != nil {
				return err
			}
		}
		return nil
	}
}

// TestLinesAreMergedByTime merges any sources, however many lines each has, however
// fast they come, and whatever times they say: no line is lost, each source keeps its
// order, and where all sources have theirs by time, so has the whole.
func TestLinesAreMergedByTime(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		sorted := rapid.Bool().Draw(rt, "sorted")
		var sources []tasklog.Source
		var want [][]*musterv1.LogMessage
		for i := range rapid.IntRange(0, 6).Draw(rt, "sources") {
			times := rapid.SliceOfN(rapid.Int64Range(0, 500), 0, 400).Draw(rt, "times")
			if sorted {
				slices.Sort(times)
			}
			var all []*musterv1.LogMessage
			for _, ms := range times {
				all = append(all, written(fmt.Sprint(i), ms))
			}
			want = append(want, all)
			sources = append(sources, lines(time.Duration(rapid.IntRange(0, 20).Draw(rt, "pause"))*time.Millisecond, all...))
		}
		got := make([][]*musterv1.LogMessage, len(want))
		var last time.Time
		var fault error
		synctest.Test(t, func(t *testing.T) {
			err := tasklog.Merge(t.Context(), sources, max(1, len(sources)), patience, func(m *musterv1.LogMessage) error {
				var i int
				if _, err := fmt.Sscan(m.TaskId, &i); err != nil {
					return err
				}
				got[i] = append(got[i], m)
				at := m.Timestamp.AsTime()
				if sorted && at.Before(last) {
					return fmt.Errorf("a line of %v came after one of %v", at, last)
				}
				last = at
				return nil
			})
			fault = err
		})
		if fault != nil {
			rt.Fatal(fault)
		}
		for i := range want {
			if !slices.Equal(got[i], want[i]) {
				rt.Fatalf("source %d: %d lines came of %d, or in another order", i, len(got[i]), len(want[i]))
			}
		}
	})
}

// TestBusyTaskWaitsForQuietOnes has one task with a hundred times as many lines as
// another, over the same time: far more than are held back.
func TestBusyTaskWaitsForQuietOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var busy, quiet []*musterv1.LogMessage
		for i := range int64(100_000) {
			busy = append(busy, written("busy", i))
			if i%100 == 0 {
				quiet = append(quiet, written("quiet", i))
			}
		}
		var last time.Time
		n := 0
		err := tasklog.Merge(t.Context(), []tasklog.Source{lines(0, busy...), lines(time.Millisecond, quiet...)}, 2, patience, func(m *musterv1.LogMessage) error {
			if at := m.Timestamp.AsTime(); at.Before(last) {
				t.Fatalf("a line of %v came after one of %v", at, last)
			} else {
				last = at
			}
			n++
			return nil
		})
		if err != nil || n != len(busy)+len(quiet) {
			t.Errorf("%d lines came of %d, then %v", n, len(busy)+len(quiet), err)
		}
	})
}

// TestSilentSourceHoldsLinesUpOnce has a source that says nothing for an hour: the
// others wait for it no longer than patience lasts, and once.
func TestSilentSourceHoldsLinesUpOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var came []string
		err := tasklog.Merge(t.Context(), []tasklog.Source{
			lines(time.Hour, written("silent", 1)),
			lines(0, written("a", 2), written("a", 3), written("a", 4)),
		}, 2, patience, func(m *musterv1.LogMessage) error {
			came = append(came, string(m.Data))
			if took := time.Since(began); m.TaskId == "a" && took != patience {
				t.Errorf("line %s came after %v, want %v", m.Data, took, patience)
			}
			return nil
		})
		if want := []string{"2", "3", "4", "1"}; err != nil || !slices.Equal(came, want) {
			t.Errorf("lines %v, %v; want %v", came, err, want)
		}
	})
}

// TestSourcesWaitForTheirTurn runs more sources than may run at a time.
func TestSourcesWaitForTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const parallel = 3
		var sources []tasklog.Source
		running := make(chan struct{}, parallel)
		for i := range 10 {
			sources = append(sources, func(ctx context.Context, emit func(*musterv1.LogMessage) error) error {
				select {
				case running <- struct{}{}:
				default:
					t.Errorf("more than %d sources run", parallel)
				}
				defer func() { <-running }()
				return lines(time.Millisecond, written(fmt.Sprint(i), 1), written(fmt.Sprint(i), 2))(ctx, emit)
			})
		}
		n := 0
		err := tasklog.Merge(t.Context(), sources, parallel, patience, func(*musterv1.LogMessage) error { n++; return nil })
		if err != nil || n != 20 {
			t.Errorf("%d lines came of 20, then %v", n, err)
		}
	})
}

// TestMergeEndsWithTheFirstError has a source fail, the receiver fail, and the context
// end; every source is told.
func TestMergeEndsWithTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	for name, tt := range map[string]struct {
		source tasklog.Source
		send   error
		cancel bool
		want   error
	}{
		"a source fails":   {source: func(context.Context, func(*musterv1.LogMessage) error) error { return broken }, want: broken},
		"the receiver":     {source: lines(0, written("a", 1)), send: broken, want: broken},
		"the context ends": {source: lines(time.Hour, written("a", 1)), cancel: true, want: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.cancel {
					time.AfterFunc(time.Minute, cancel)
				}
				told := false
				waits := func(ctx context.Context, _ func(*musterv1.LogMessage) error) error {
					<-ctx.Done()
					told = true
					return ctx.Err()
				}
				err := tasklog.Merge(ctx, []tasklog.Source{waits, tt.source}, 2, patience, func(*musterv1.LogMessage) error { return tt.send })
				if !errors.Is(err, tt.want) || !told {
					t.Errorf("Merge returned %v, want %v; the other source was told: %v", err, tt.want, told)
				}
			})
		})
	}
}

// TestReadingResumesWithoutLossOrDoubles cuts off the reading of lines at any one,
// where many have the same time.
func TestReadingResumesWithoutLossOrDoubles(t *testing.T) {
	all := []*musterv1.LogMessage{{Data: []byte("no time")}}
	for i, ms := range []int64{1, 1, 1, 2, 3, 3, 5} {
		line := written("a", ms)
		line.Data = []byte(fmt.Sprint(i))
		all = append(all, line)
	}
	for cut := 1; cut <= len(all); cut++ {
		var p tasklog.Position
		for _, line := range all[:cut] {
			p.Note(line)
		}
		since, ok := p.Since()
		if ok != (cut > 1) {
			t.Errorf("after %d lines: Since() = %v, %v", cut, since, ok)
		}
		if !ok {
			continue
		}
		known := p.Resume()
		var rest []*musterv1.LogMessage
		for _, line := range all[1:] {
			if !line.Timestamp.AsTime().Before(since) && !known(line) {
				rest = append(rest, line)
			}
		}
		if !slices.Equal(rest, all[cut:]) {
			t.Errorf("after %d lines, these are read: %v, want %v", cut, rest, all[cut:])
		}
	}
}

func TestTextNamesTaskAndNode(t *testing.T) {
	for want, m := range map[string]*musterv1.LogMessage{
		"web.1.0k2fgm4tq8xw@alpha | hello": {Source: "web.1", TaskId: "0k2fgm4tq8xwyz", NodeId: "n1", NodeName: "alpha", Data: []byte("hello")},
		"web.1.t@n1 | a [31m":              {Source: "web.1", TaskId: "t", NodeId: "n1", Data: []byte("a\t\x1b[31m")},
	} {
		if got := tasklog.Text(m); got != want {
			t.Errorf("Text(%v) = %q, want %q", m, got, want)
		}
	}
}

// endless emits lines that are dated at the given time, one every pause, until it is
// ended.
func endless(task string, ms int64, pause time.Duration) tasklog.Source {
	return func(ctx context.Context, emit func(*musterv1.LogMessage) error) error {
		for {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := emit(written(task, ms)); err != nil {
				return err
			}
		}
	}
}

// TestNoSourceStarvesOthersByItsTimes has sources without end whose lines are dated
// before all others, or after, and sources whose lines are dated as they are
// written. However many there are, the lines of the latter come: the first after a
// while, and the others at the pace of the slowest source.
func TestNoSourceStarvesOthersByItsTimes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var sources []tasklog.Source
		hostile := rapid.IntRange(1, 4).Draw(rt, "endless sources")
		slowest := time.Millisecond
		for i := range hostile {
			pause := time.Duration(rapid.IntRange(1, 10).Draw(rt, "pause")) * time.Millisecond
			slowest = max(slowest, pause)
			sources = append(sources, endless(fmt.Sprint("endless", i), rapid.SampledFrom([]int64{0, 999, 1500, 1 << 50}).Draw(rt, "date"), pause))
		}
		honest := rapid.IntRange(1, 3).Draw(rt, "honest sources")
		count := rapid.IntRange(1, 100).Draw(rt, "lines")
		for i := range honest {
			var all []*musterv1.LogMessage
			for ms := range int64(count) {
				all = append(all, written(fmt.Sprint("honest", i), 1000+10*ms))
			}
			sources = append(sources, lines(0, all...))
		}
		enough := errors.New("enough")
		var took time.Duration
		var fault error
		synctest.Test(t, func(t *testing.T) {
			began, left := time.Now(), honest*count
			fault = tasklog.Merge(t.Context(), sources, len(sources), patience, func(m *musterv1.LogMessage) error {
				if m.TaskId[0] == 'h' {
					left--
				}
				if left == 0 {
					took = time.Since(began)
					return enough
				}
				if time.Since(began) > 2*time.Minute {
					return fmt.Errorf("after two minutes %d of %d lines have not come", left, honest*count)
				}
				return nil
			})
		})
		if !errors.Is(fault, enough) {
			rt.Fatal(fault)
		}
		// At most ten seconds twice, 256 lines of each endless source, then turns.
		if limit := 20*time.Second + time.Duration((256+count*honest)*(hostile+1))*2*slowest; took > limit {
			rt.Fatalf("the last line came after %v, want at most %v", took, limit)
		}
	})
}

// TestSlowReceiverKeepsOrder has a receiver that takes a minute for a line: lines that
// wait for it are still sent by time.
func TestSlowReceiverKeepsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var early []*musterv1.LogMessage
		for i := range int64(2000) {
			early = append(early, written("early", i))
		}
		var got []string
		err := tasklog.Merge(t.Context(), []tasklog.Source{lines(0, early...), lines(0, written("late", 5000))}, 2, patience, func(m *musterv1.LogMessage) error {
			time.Sleep(time.Minute)
			got = append(got, m.TaskId)
			return nil
		})
		if err != nil || len(got) != 2001 || slices.Index(got, "late") != 2000 {
			t.Errorf("%d lines, %v; the line of %d is the late one, want the last", len(got), err, slices.Index(got, "late"))
		}
	})
}
