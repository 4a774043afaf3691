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
			if pause > 0 {
				select {
				case <-time.After(pause):
				case <-ctx.Done():
				}
			}
			if ctx.Err() != nil {
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
			time.Sleep(pause)
			if ctx.Err() != nil {
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
		// Ten seconds at the first line, ten more for each endless source where its date is
		// reached, 256 lines of each endless source, then turns.
		held := time.Duration(1+hostile) * 10 * time.Second
		if limit := held + time.Duration((256+count*honest)*(hostile+1))*2*slowest; took > limit {
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

// TestSourceThatDripsEarlyLinesDoesNotStarveOthers has a source that sends an early
// line each 1.9 s, within the patience that is had with it. The lines of the other
// source come as soon as the first has waited too long, even if the early source now
// and then says a time that is not early.
func TestSourceThatDripsEarlyLinesDoesNotStarveOthers(t *testing.T) {
	for name, tenth := range map[string]int64{"all early": 0, "each tenth line in time": 1000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const count = 10_000
				drip := func(ctx context.Context, emit func(*musterv1.LogMessage) error) error {
					var err error
					for n := 1; err == nil; n++ {
						ms := int64(0)
						if n%10 == 0 {
							ms = tenth
						}
						err = lines(1900*time.Millisecond, written("drip", ms))(ctx, emit)
					}
					return err
				}
				var honest []*musterv1.LogMessage
				for i := range int64(count) {
					honest = append(honest, written("honest", 1000+i))
				}
				enough := errors.New("enough")
				began, n := time.Now(), 0
				err := tasklog.Merge(t.Context(), []tasklog.Source{drip, lines(0, honest...)}, 2, 2*time.Second, func(m *musterv1.LogMessage) error {
					if m.TaskId == "honest" {
						n++
					}
					if n == count || time.Since(began) > 8*time.Minute {
						return enough
					}
					return nil
				})
				if took := time.Since(began); !errors.Is(err, enough) || took > 15*time.Second {
					t.Errorf("%d of %d lines came in %v, %v; want all within 15s", n, count, took, err)
				}
			})
		})
	}
}

// TestSourceWithoutPausesDoesNotStarveOthers has a source of early lines that always
// has another one, and a receiver that takes longer than that: no time passes in
// which a line waits for a source.
func TestSourceWithoutPausesDoesNotStarveOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		early := func(_ context.Context, emit func(*musterv1.LogMessage) error) error {
			line := written("early", 0)
			for {
				if err := emit(line); err != nil {
					return err
				}
			}
		}
		enough := errors.New("enough")
		n, honest := 0, 0
		err := tasklog.Merge(t.Context(), []tasklog.Source{early, lines(0, written("honest", 1), written("honest", 2))}, 2, patience, func(m *musterv1.LogMessage) error {
			if n++; m.TaskId == "honest" {
				honest++
			}
			if honest == 2 || n == 1_200_000 {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) || honest != 2 {
			t.Errorf("%d of 2 lines came among %d, %v", honest, n, err)
		}
	})
}

// TestSlowSourceIsSortedAgainOnceItCatchesUp has an honest source that needs half a
// minute for its old lines, and then has its lines shortly after they were written. The
// others do not wait half a minute, but soon after it all lines come by time.
func TestSlowSourceIsSortedAgainOnceItCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			old    = 3000
			start  = 1 << 30
			others = 4000
			count  = 400
		)
		began := time.Now()
		// steady has a line every so many milliseconds, written a while before.
		steady := func(task string, count int, pause, before int64) tasklog.Source {
			return func(ctx context.Context, emit func(*musterv1.LogMessage) error) error {
				for range count {
					if err := lines(time.Duration(pause)*time.Millisecond, written(task, 0))(ctx, func(line *musterv1.LogMessage) error {
						line.Timestamp = timestamppb.New(time.UnixMilli(start + time.Since(began).Milliseconds() - before))
						return emit(line)
					}); err != nil {
						return err
					}
				}
				return nil
			}
		}
		slow := func(ctx context.Context, emit func(*musterv1.LogMessage) error) error {
			var all []*musterv1.LogMessage
			for i := range int64(old) {
				all = append(all, written("old", i))
			}
			if err := lines(10*time.Millisecond, all...)(ctx, emit); err != nil {
				return err
			}
			return steady("slow", count, 130, 60)(ctx, emit)
		}
		var last time.Time
		oldLeft, slowCame, earlier, disorder := old, 0, 0, 0
		err := tasklog.Merge(t.Context(), []tasklog.Source{slow, steady("other", others, 170, 0)}, 2, patience, func(m *musterv1.LogMessage) error {
			switch m.TaskId {
			case "old":
				oldLeft--
				return nil
			case "slow":
				slowCame++
			case "other":
				if oldLeft > 0 {
					earlier++
				}
			}
			at := m.Timestamp.AsTime()
			if slowCame > 10 && at.Before(last) {
				disorder++
			}
			last = at
			return nil
		})
		if err != nil || oldLeft != 0 || slowCame != count || earlier < 100 || disorder > 0 {
			t.Errorf("%v; %d old lines are missing, %d of %d slow ones came, %d lines came before the last old one, want 100; %d were out of order after it, want none",
				err, oldLeft, slowCame, count, earlier, disorder)
		}
	})
}
