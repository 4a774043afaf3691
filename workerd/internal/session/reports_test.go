package session

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
)

func TestStatusesAreResentUntilAcknowledged(t *testing.T) {
	inBubble(t, func(f *fixture) {
		f.tasks.set("t1", running)
		p := f.at("a").await()
		p.welcome(nil)
		pass(time.Second)
		f.tasks.set("t2", running)
		f.client.reports.Changed("t2", true)
		pass(time.Second)
		// One report is under way at a time.
		if all := p.reports(); len(all) != 1 || !slices.Equal(reported(all[0]), []string{"t1"}) {
			f.t.Fatalf("reports = %v", all)
		}
		p.ack(1)
		pass(time.Second)
		if all := p.reports(); len(all) != 2 || !slices.Equal(reported(all[1]), []string{"t2"}) {
			f.t.Fatalf("reports after the acknowledgement = %v", all)
		}
		// The second report is never acknowledged: the next session gets everything.
		p = f.at("a").await()
		p.welcome(nil)
		pass(time.Second)
		if all := p.reports(); len(all) != 1 || all[0].GetSequence() != 1 || !slices.Equal(reported(all[0]), []string{"t1", "t2"}) {
			f.t.Errorf("reports of the next session = %v", all)
		}
		p.ack(1)
		pass(time.Hour)
		if all := p.reports(); len(all) != 1 {
			f.t.Errorf("%d reports although nothing has changed", len(all))
		}
	})
}

// TestAcknowledgementOfUnsentReportIsIgnored acknowledges more than was sent.
func TestAcknowledgementOfUnsentReportIsIgnored(t *testing.T) {
	inBubble(t, func(f *fixture) {
		p := f.at("a").await()
		p.welcome(nil)
		p.ack(7)
		f.tasks.set("t1", running)
		f.client.reports.Changed("t1", true)
		pass(time.Second)
		p.ack(7)
		f.tasks.set("t2", running)
		f.client.reports.Changed("t2", true)
		pass(time.Second)
		if all := p.reports(); len(all) != 1 {
			f.t.Errorf("%d reports, want 1: the first is not acknowledged", len(all))
		}
	})
}

// reportedErrors acknowledges all reports of a session until none follows, and
// returns the error of each task that was reported.
func (p *peer) reportedErrors() map[string]string {
	p.t.Helper()
	all := map[string]string{}
	for seen := 0; ; {
		pass(time.Second)
		reports := p.reports()
		if len(reports) == seen {
			return all
		}
		for _, r := range reports[seen:] {
			if size := proto.Size(r); size > mostReportBytes {
				p.t.Errorf("report %d has %d bytes, want at most %d", r.GetSequence(), size, mostReportBytes)
			}
			for _, s := range r.GetStatuses() {
				all[s.GetTaskId()] = s.GetStatus().GetError()
			}
			p.ack(r.GetSequence())
		}
		seen = len(reports)
	}
}

func TestReportsAreBoundedByBytes(t *testing.T) {
	inBubble(t, func(f *fixture) {
		for i := range 200 {
			id := fmt.Sprint("t", i)
			f.tasks.set(id, running)
			f.tasks.errors[id] = strings.Repeat("x", 40<<10)
		}
		p := f.at("a").await()
		p.welcome(nil)
		reported := p.reportedErrors()
		if !maps.Equal(reported, f.tasks.errors) {
			f.t.Errorf("%d of 200 statuses were reported with their errors", len(reported))
		}
		if n := len(p.reports()); n > 9 {
			f.t.Errorf("%d reports for 8 MB of statuses, want at most 9", n)
		}
	})
}
