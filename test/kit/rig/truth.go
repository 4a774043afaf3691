package rig

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// Truthful returns an error unless the processes of tasks that there are on the
// machine are those that the cluster says should run: none is missing, none is
// doubled, and none is unknown.
func (r *Rig) Truthful(ctx context.Context) error {
	tasks, err := r.Tasks(ctx, "")
	if err != nil {
		return err
	}
	there, err := r.TaskProcesses()
	if err != nil {
		return err
	}
	var faults []error
	known := map[string]bool{}
	slots := map[string]string{}
	for _, t := range tasks {
		known[t.Id] = true
		if t.DesiredState == musterv1.TaskState_RUNNING && t.Slot > 0 {
			slot := fmt.Sprintf("%s.%d", t.ServiceId, t.Slot)
			if other := slots[slot]; other != "" {
				faults = append(faults, fmt.Errorf("tasks %s and %s are both desired in slot %s", other, t.Id, slot))
			}
			slots[slot] = t.Id
		}
		if t.Spec.GetGeneric().GetKind() != "process" {
			continue
		}
		pid := int(t.Status.GetRuntime().GetPid())
		running := t.Status.GetState() == musterv1.TaskState_RUNNING
		ps := there[t.Id]
		has := slices.ContainsFunc(ps, func(p Process) bool { return p.PID == pid })
		switch {
		case running && !has:
			faults = append(faults, fmt.Errorf("task %s is said to run as process %d, which is not there", t.Name, pid))
		case !running && len(ps) > 0:
			faults = append(faults, fmt.Errorf("task %s is reported as %s, and there is %s", t.Name, t.Status.GetState(), ps[0]))
		}
	}
	for id, ps := range there {
		if !known[id] {
			faults = append(faults, fmt.Errorf("no task knows of %s", ps[0]))
		}
	}
	return errors.Join(faults...)
}

// Same returns an error unless the same tasks run as before, on the same nodes, as
// the same processes.
func Same(before, after map[string]*musterv1.Task) error {
	var faults []string
	for id, b := range before {
		a := after[id]
		switch {
		case a == nil:
			faults = append(faults, fmt.Sprintf("task %s is not there any more", b.Name))
		case a.NodeId != b.NodeId:
			faults = append(faults, fmt.Sprintf("task %s moved from node %s to %s", b.Name, b.NodeId, a.NodeId))
		case a.Status.Runtime.GetId() != b.Status.Runtime.GetId() || a.Status.Runtime.GetPid() != b.Status.Runtime.GetPid():
			faults = append(faults, fmt.Sprintf("task %s was started again: it was %v, it is %v", b.Name, b.Status.Runtime, a.Status.Runtime))
		case a.Status.Runtime.GetPid() > 0 && !Alive(int(a.Status.Runtime.GetPid())):
			faults = append(faults, fmt.Sprintf("task %s says that it is process %d, which is not there", b.Name, a.Status.Runtime.GetPid()))
		}
	}
	for id, a := range after {
		if before[id] == nil {
			faults = append(faults, fmt.Sprintf("task %s is new", a.Name))
		}
	}
	if len(faults) > 0 {
		slices.Sort(faults)
		return fmt.Errorf("not the same tasks: %s", strings.Join(faults, "; "))
	}
	return nil
}

// Replaced returns an error unless the same tasks run as before, but for one that
// has died and in whose place there is another. Until the cluster has heard of its
// death it keeps saying that it runs, and that is not it yet.
func Replaced(before, after map[string]*musterv1.Task, dead string) error {
	if t := after[dead]; t != nil {
		return fmt.Errorf("task %s is dead, and is said to run", t.Name)
	}
	others, left := map[string]*musterv1.Task{}, map[string]*musterv1.Task{}
	var fresh []*musterv1.Task
	for id, t := range after {
		if before[id] != nil {
			others[id] = t
		} else {
			fresh = append(fresh, t)
		}
	}
	for id, t := range before {
		if id != dead {
			left[id] = t
		}
	}
	if err := Same(left, others); err != nil {
		return err
	}
	if len(fresh) != 1 {
		return fmt.Errorf("%d tasks are new, want 1", len(fresh))
	}
	if pid := int(fresh[0].Status.Runtime.GetPid()); !Alive(pid) {
		return fmt.Errorf("task %s says that it is process %d, which is not there", fresh[0].Name, pid)
	}
	return nil
}
