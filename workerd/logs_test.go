package workerd_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	. "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk"
)

// lineAt is a task's line that is written so many milliseconds after the epoch.
func lineAt(task string, ms int64) sdk.LogLine {
	return sdk.LogLine{Time: time.UnixMilli(ms), Stream: sdk.Stdout, Data: []byte(fmt.Sprintf("%s %d", task, ms))}
}

// TestLinesOfTasksComeByTime reads the output of two tasks, of which one wrote much more
// than the other over the same time.
func TestLinesOfTasksComeByTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, a := ableSet(t)
		const busy, every = 5000, 50
		a.set(func(a *able) {
			a.log = func(ref sdk.Ref, _ sdk.LogOptions, emit func(sdk.LogLine) error) error {
				step := int64(1)
				if ref.TaskID == "b" {
					step = every
				}
				for ms := int64(0); ms < busy; ms += step {
					if err := emit(lineAt(ref.TaskID, ms)); err != nil {
						return err
					}
				}
				return nil
			}
		})
		start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		s.assign(true, []assignment{nullTask("a", running, nil), nullTask("b", running, nil)})
		settle(time.Second)
		s.send(&dispatcherv1.SessionResponse{Message: &dispatcherv1.SessionResponse_LogRequest{LogRequest: &dispatcherv1.LogRequest{
			SubscriptionId: "s", TaskIds: []string{"a", "b"}, Options: &LogOptions{},
		}}})
		settle(time.Minute)
		lines, ended := s.logged("s")
		if !ended || len(lines) != busy+busy/every {
			t.Fatalf("%d lines, ended %t; want %d and the end", len(lines), ended, busy+busy/every)
		}
		last := 0
		for _, line := range lines {
			var task string
			var ms int
			if _, err := fmt.Sscan(line, &task, &ms); err != nil {
				t.Fatal(err)
			}
			if ms < last {
				t.Fatalf("a line of %d ms came after one of %d ms", ms, last)
			}
			last = ms
		}
	})
}

// TestNoLineIsLostWhileAnExecutorIsAway has an executor break off between lines of the
// same time.
func TestNoLineIsLostWhileAnExecutorIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		d, _ := n.serve(t, "d1:1")
		set, a := ableSet(t)
		all := []sdk.LogLine{lineAt("a", 1), lineAt("a", 2), lineAt("a", 2), lineAt("a", 2), lineAt("a", 3)}
		for i := range all {
			all[i].Data = fmt.Append(nil, i)
		}
		calls := 0
		a.set(func(a *able) {
			a.log = func(_ sdk.Ref, options sdk.LogOptions, emit func(sdk.LogLine) error) error {
				sent := 0
				for _, line := range all {
					if line.Time.Before(options.Since) {
						continue
					}
					if sent++; calls == 0 && sent > 3 {
						break
					}
					if err := emit(line); err != nil {
						return err
					}
				}
				if calls++; calls == 1 {
					return sdk.Temporary(errors.New("the executor is started again"), time.Second)
				}
				return nil
			}
		})
		start(t, n, set, nil)
		s := d.await(t)
		s.welcome()
		s.assign(true, []assignment{nullTask("a", running, nil)})
		settle(time.Second)
		s.logRequest("s", "a")
		settle(time.Minute)
		lines, ended := s.logged("s")
		if want := []string{"0", "1", "2", "3", "4"}; !ended || !slices.Equal(lines, want) {
			t.Errorf("lines %v, ended %t; want %v and the end", lines, ended, want)
		}
	})
}
