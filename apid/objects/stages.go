package objects

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

// The daemons that get a task from stage to stage.
const (
	apid          = "apid"
	orchestratord = "orchestratord"
	schedulerd    = "schedulerd"
	dispatcherd   = "dispatcherd"
	workerd       = "workerd"
)

// stage is a moment on a task's way, in milliseconds by the clock of the
// daemon's host.
type stage struct {
	name, daemon, detail string
	at                   int64
}

// Stages tells a task's way from the user's request on: which daemon got it
// where, and how long that took. Everything comes from times that the task's
// records hold anyway.
func Stages(t *Task) []*musterv1.TaskStage {
	all := stagesOf(t)
	list := make([]*musterv1.TaskStage, len(all))
	for i, s := range all {
		list[i] = &musterv1.TaskStage{Name: s.name, Daemon: s.daemon, At: stamp(s.at), Detail: s.detail}
		if i == 0 {
			continue
		}
		took := time.Duration(s.at-all[i-1].at) * time.Millisecond
		if took < 0 {
			list[i].ClockBehind = durationpb.New(-took)
		}
		list[i].Took = durationpb.New(max(took, 0))
	}
	return list
}

// stagesOf returns the stages in the order in which one led to the next.
func stagesOf(t *Task) []stage {
	rec := t.Record
	var way []stage
	if rec.AskedAt > 0 {
		way = append(way, stage{name: "requested", daemon: apid, at: rec.AskedAt})
	}
	made := stage{name: "created", daemon: orchestratord, at: rec.CreatedAt}
	if t.Live() {
		// Later the record says why the task was given up.
		made.detail = rec.Reason
	}
	way = append(way, made)
	if a := t.Assignment; a != nil {
		way = append(way, stage{name: "assigned", daemon: schedulerd, at: a.AssignedAt})
	}
	if s := t.Status; s != nil {
		way = append(way, reported(s)...)
	}
	// What the orchestrator does to a task that is on its way happens beside the
	// rest, so only the time says where it belongs.
	switch {
	case !t.Live():
		way = insert(way, stage{name: "stopping", daemon: orchestratord, at: rec.DesiredAt, detail: rec.Reason})
	case rec.DesiredState == musterv1.TaskState_RUNNING && rec.DesiredAt > rec.CreatedAt:
		way = insert(way, stage{name: "released", daemon: orchestratord, at: rec.DesiredAt})
	}
	return way
}

// reported returns what a task's status says of its way.
func reported(s *recordv1.Status) []stage {
	var way []stage
	if s.SentAt > 0 {
		way = append(way, stage{name: "sent", daemon: dispatcherd, at: s.SentAt})
	}
	for st := range state.Times(s) {
		if st.State <= musterv1.TaskState_ASSIGNED {
			continue
		}
		by := workerd
		if st.State == musterv1.TaskState_ORPHANED {
			by = dispatcherd
		}
		way = append(way, stage{name: strings.ToLower(st.State.String()), daemon: by, at: st.At})
	}
	if s.AppliedAt > 0 && s.State != musterv1.TaskState_ORPHANED {
		// Of the states before, it is not kept when they were recorded.
		way = append(way, stage{
			name: "recorded", daemon: dispatcherd, at: s.AppliedAt, detail: "that it is " + strings.ToLower(s.State.String()),
		})
	}
	return way
}

// insert puts a stage behind those that were before it, of which the first is
// how the task came into being.
func insert(way []stage, s stage) []stage {
	i := len(way)
	for i > 1 && way[i-1].at > s.at {
		i--
	}
	return slices.Insert(way, i, s)
}
