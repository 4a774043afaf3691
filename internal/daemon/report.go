package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	daemonv1 "github.com/musterhq/muster/api/muster/daemon/v1"
	"github.com/musterhq/muster/internal/shards"
)

// maxLag is how long a daemon's view may lag, or the store be out of contact, before the
// daemon reports itself unhealthy. It is longer than an election of Consul's leader.
const maxLag = 15 * time.Second

// Starting is the error of a daemon that has not been able to work since it started. Only a
// daemon with this error is not ready.
type Starting struct{ Err error }

func (e *Starting) Error() string { return e.Err.Error() }
func (e *Starting) Unwrap() error { return e.Err }

var errNotLoaded = errors.New("the tables are not loaded yet")

// Healthy returns why a daemon with this view cannot work, or nil. A daemon that needs no
// view passes nil.
func Healthy(view View) error {
	if view == nil {
		return nil
	}
	st := view.Status()
	switch {
	case !st.Loaded && st.Err != nil:
		return &Starting{fmt.Errorf("%w: %w", errNotLoaded, st.Err)}
	case !st.Loaded:
		return &Starting{errNotLoaded}
	case st.Stale > maxLag:
		return fmt.Errorf("no contact with the store for %v: %w", st.Stale.Round(time.Second), st.Err)
	case st.BehindFor > maxLag:
		return fmt.Errorf("the view has been behind the store for %v, by %d commits now", st.BehindFor.Round(time.Second), st.Behind)
	}
	return nil
}

// reporter answers questions about this daemon.
type reporter struct {
	daemonv1.UnimplementedDaemonServiceServer
	member shards.Member
	view   View
	creds  Credentials
	// keys returns the names of the daemon's cluster keys. It is nil if the daemon has
	// none.
	keys func() []string
}

func (r *reporter) Report(context.Context, *daemonv1.ReportRequest) (*daemonv1.ReportResponse, error) {
	resp := &daemonv1.ReportResponse{
		Daemon: r.member.Daemon, Instance: r.member.Instance, Version: r.member.Version, StartedAt: timestamppb.New(r.member.Started),
	}
	if err := Healthy(r.view); err != nil {
		resp.Problem = err.Error()
	}
	if r.creds.Secure() {
		resp.Root = r.creds.source.Get().Root
	}
	if r.keys != nil {
		// Daemons that have keys open specs. Daemons of former versions do not say so.
		resp.Keys, resp.OpensSpecs = r.keys(), true
	}
	if r.view != nil {
		resp.View = viewMessage(r.view)
	}
	return resp, nil
}

func viewMessage(view View) *daemonv1.View {
	st := view.Status()
	m := &daemonv1.View{Loaded: st.Loaded, StaleFor: durationpb.New(st.Stale), Lag: durationpb.New(st.Lag())}
	for table, sequences := range view.AppliedSequences() {
		m.Tables = append(m.Tables, &daemonv1.TableView{Table: table, Sequences: sequences})
	}
	slices.SortFunc(m.Tables, func(a, b *daemonv1.TableView) int { return strings.Compare(a.Table, b.Table) })
	return m
}
