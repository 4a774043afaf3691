package lifecycle_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/nodereport"
	"github.com/musterhq/muster/workerd/internal/lifecycle"
)

// However the clock jumps between them, the states of a task have times that do
// not fall, also in a worker that has forgotten how much time really passed.
func TestTimesDoNotFall(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		var s lifecycle.Status
		for state := musterv1.TaskState_ACCEPTED; state <= musterv1.TaskState_COMPLETE; state++ {
			jump := time.Duration(rapid.Int64Range(-int64(48*time.Hour), int64(48*time.Hour)).Draw(r, "jump"))
			before := s.At
			now := time.Now().Add(jump)
			s.Move(state, now, "")
			if s.At.Before(before) || s.At.Before(now.Round(0)) || (!now.Round(0).Before(before) && !s.At.Equal(now)) {
				r.Errorf("%s at %s follows what was at %s; the clock said %s", state, s.At, before, now)
			}
			if rapid.Bool().Draw(r, "restart") {
				s = lifecycle.FromReport(s.Report("t"))
			}
		}
		for i, at := range s.Times {
			if i > 0 && at.At.Before(s.Times[i-1].At) {
				r.Errorf("times fall: %v", s.Times)
			}
		}
	})
}

// TestStoredStatusIsReportedWithinLimits reads a status as an earlier version may have
// stored it, with an error that no message can carry.
func TestStoredStatusIsReportedWithinLimits(t *testing.T) {
	t.Parallel()
	endless := "no such image: " + strings.Repeat("\u00e4", 3<<20)
	stored := &dispatcherv1.ReportedStatus{Status: &musterv1.TaskStatus{
		State: musterv1.TaskState_FAILED, Message: endless, Error: endless,
		Runtime: &musterv1.RuntimeStatus{Id: endless, ExitCode: 3, Health: &musterv1.Health{Output: endless}},
	}}
	for range 1000 {
		stored.Status.Ports = append(stored.Status.Ports, &musterv1.PortConfig{Name: endless, TargetPort: 80})
	}
	status := lifecycle.FromReport(stored)
	report := status.Report("t1")
	if size := proto.Size(report); size > 64<<10 {
		t.Errorf("the status is reported with %d bytes, want at most 64 KiB", size)
	}
	got := report.Status
	if !strings.HasPrefix(got.Error, "no such image: \u00e4") || !utf8.ValidString(got.Error) || got.Runtime.ExitCode != 3 || len(got.Ports) != nodereport.MaxPorts {
		t.Errorf("the error begins %.20q, the exit code is %d, and there are %d ports", got.Error, got.Runtime.ExitCode, len(got.Ports))
	}
}
