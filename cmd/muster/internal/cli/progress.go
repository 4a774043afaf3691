package cli

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// progress shows one line: redrawn on a terminal, and again when it has changed
// elsewhere.
type progress struct {
	c *CLI
	// board shows the lines of several services; nil: there is one.
	board             *board
	quiet             bool
	rollout, rollback bool
	// updated says that an update was seen to be under way.
	updated bool
	drawn   bool
	// last is the latest line without reasons: at first the service's name. seen says
	// that it has numbers of tasks.
	last string
	seen bool
	// printed are the lines that were printed since the numbers of tasks changed last,
	// for which printed holds.
	printed    map[string]bool
	printedFor string
	trouble    string
	// why is the trouble without its task: of tasks that fail one after another for
	// the same reason the first is named. troubled is the task of the latest trouble.
	why, troubled string
	// waits is for how long tasks have waited for a node.
	waits spell
	// pending is why tasks wait for a node, and missing which daemon they wait for.
	// silent says that apid does not answer.
	pending, missing, silent string
	// specVersion is that of the spec that is waited for, 0 if that is a former one.
	specVersion uint64
}

// service shows how far a service is, and reports whether it has converged at
// the version that was asked for, or a later one. Its error says that it will not,
// because the update has paused or was rolled back.
func (p *progress) service(s *musterv1.Service, version uint64) (bool, error) {
	st, state := s.Status, s.UpdateStatus.GetState()
	line := fmt.Sprintf("%s: %d/%d running", s.Spec.GetName(), st.GetRunningTasks(), st.GetDesiredTasks())
	p.last, p.seen = line, true
	underWay := underWay(s)
	p.pending = ""
	if st.GetRunningTasks() < st.GetDesiredTasks() {
		p.pending = st.GetPendingReason()
	}
	p.waits.note(p.pending != "", time.Now())
	if p.waitsShown() > 0 {
		line += p.because("")
	} else {
		line += p.reason()
	}
	if underWay && p.rollout && line == p.last {
		line += ": " + s.UpdateStatus.GetMessage()
	}
	if p.c.Terminal && p.board == nil && st.GetDesiredTasks() > 0 {
		const width = 20
		full := int(min(uint64(width), width*st.GetRunningTasks()/st.GetDesiredTasks()))
		line = "[" + strings.Repeat("=", full) + strings.Repeat(" ", width-full) + "] " + line
	}
	p.show(line)
	if s.Meta.GetVersion() < version {
		return false, nil
	}
	p.updated = p.updated || p.rollout && underWay
	stuck := state == musterv1.UpdateStatus_PAUSED || state == musterv1.UpdateStatus_ROLLBACK_PAUSED ||
		state == musterv1.UpdateStatus_ROLLBACK_COMPLETED && !st.GetConverged() && !p.rollback
	switch {
	case stuck && p.rollout:
		return false, p.stuck(s)
	case stuck:
		// Tasks are of several specs, or of a former one, and stay so.
		return st.GetRunningTasks() == st.GetDesiredTasks(), nil
	default:
		return st.GetConverged() && (!underWay || !p.rollout), nil
	}
}

// waitsShown returns after what time the reason why tasks wait for a node is shown, if
// it lasts; 0 if it is shown. A new service may wait for a moment for the addresses of its
// networks.
func (p *progress) waitsShown() time.Duration {
	left, lasts := p.waits.left(momentaryWait, time.Now())
	if !lasts {
		return 0
	}
	return max(left, 0)
}

// stuck says what has become of an update, and what to do.
func (p *progress) stuck(s *musterv1.Service) error {
	name, message := s.Spec.GetName(), s.UpdateStatus.GetMessage()
	if s.UpdateStatus.GetState() == musterv1.UpdateStatus_ROLLBACK_COMPLETED {
		return fmt.Errorf("%w: %s. The tasks run what they ran before the update; `muster service ps %s` shows what failed, and `muster service update %s` tries again",
			errNotConverged, message, name, name)
	}
	return fmt.Errorf("%w: %s. `muster service ps %s` shows the tasks; `muster service rollback %s` goes back, and `muster service update %s` tries again",
		errNotConverged, message, name, name, name)
}

// reason says why tasks do not run, behind a colon, or "" if nothing is known.
func (p *progress) reason() string { return p.because(p.pending) }

// because is reason for other words about tasks that wait for a node.
func (p *progress) because(pending string) string {
	if why := cmp.Or(p.silent, pending, p.missing, p.trouble); why != "" {
		return ": " + why
	}
	return ""
}

// concerns reports whether a task is of the spec that is waited for.
func (p *progress) concerns(t *musterv1.Task) bool { return t.SpecVersion >= p.specVersion }

// heard notes that apid answers. After a silence the present state is shown again.
func (p *progress) heard() {
	if p.silent != "" {
		p.silent, p.printed = "", nil
	}
}

// cause says why a task does not run.
func cause(t *musterv1.Task) string {
	state := strings.ToLower(t.Status.GetState().String())
	if t.Status.GetState() == musterv1.TaskState_PREPARING {
		state = "is being prepared"
		if image := t.Spec.GetContainer().GetImage(); image != "" && t.Status.GetError() == "" {
			state += " (its image " + image + " may still be pulled)"
		}
	}
	return strings.TrimSuffix(state+": "+t.Status.GetError(), ": ")
}

// task notes why a task does not run, and reports whether that is so.
func (p *progress) task(t *musterv1.Task) bool {
	if t.Status.GetError() != "" && p.concerns(t) {
		why := cause(t)
		if p.trouble == "" || p.why != why {
			p.trouble, p.why, p.troubled = "task "+short(t.Id, false)+" "+why, why, t.Id
		}
		return true
	}
	if t.Status.GetState() == musterv1.TaskState_RUNNING || t.Id == p.troubled {
		p.trouble = ""
	}
	return false
}

func (p *progress) show(line string) {
	line = printable(line)
	if p.quiet {
		return
	}
	if p.c.Terminal && p.board == nil {
		// Carriage return, and erase to the end of the line (ECMA-48).
		_, _ = fmt.Fprintf(p.c.Err, "\r\x1b[K%s", cut(line, 110, false))
		p.drawn = true
		return
	}
	if p.printedFor != p.last || p.printed == nil {
		p.printedFor, p.printed = p.last, map[string]bool{}
	} else if line == p.last {
		// A reason has gone, and the numbers are those that were printed with it.
		return
	}
	switch {
	case p.printed[line]:
	case p.board != nil:
		p.board.show(line)
	default:
		_, _ = fmt.Fprintln(p.c.Err, line)
	}
	p.printed[line] = true
}

func (p *progress) end() {
	if p.drawn {
		_, _ = fmt.Fprintln(p.c.Err)
	}
}
