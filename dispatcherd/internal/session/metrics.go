package session

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	dispatcherv1 "github.com/musterhq/muster/api/muster/dispatcher/v1"
	"github.com/musterhq/muster/dispatcherd/internal/statuses"
	"github.com/musterhq/muster/internal/daemon"
)

// Metrics count what workers are sent.
type Metrics struct {
	// Statuses counts reports that the sessions ignore.
	Statuses  *statuses.Metrics
	tasks     prometheus.Counter
	specs     prometheus.Counter
	withdrawn prometheus.Counter
	refused   prometheus.Counter
	sent      prometheus.Histogram
	running   prometheus.Histogram
	backends  prometheus.Histogram
}

// NewMetrics registers metrics, unless r is nil.
func NewMetrics(r prometheus.Registerer, s *statuses.Metrics) (*Metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_dispatcher_" + name, Help: help})
	}
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "muster_dispatcher_" + name, Help: help, Buckets: daemon.StageBuckets()})
	}
	m := &Metrics{
		Statuses:  s,
		tasks:     counter("assignments_sent_total", "Tasks that were sent to workers, new or changed."),
		specs:     counter("specs_sent_total", "Task specs that were sent to workers."),
		withdrawn: counter("assignments_withdrawn_total", "Tasks that workers were told to remove."),
		refused:   counter("conflicting_workers_refused_total", "Attempts of a second worker to be a node that is connected."),
		sent: histogram("task_sent_seconds",
			"Time from a task's assignment until it is sent to its worker. Tasks that were assigned before their worker's session began are not counted."),
		running: histogram("task_running_seconds",
			"Time from a task's assignment until its worker has reported that it runs. Tasks that had to wait before they could start are not counted."),
		backends: histogram("backend_sent_seconds",
			"Time from the report that a task of a service runs on a network until it is sent to a node of the network, counted once for each message by its oldest task."),
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.tasks, m.specs, m.withdrawn, m.refused, m.sent, m.running, m.backends} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

// countSent counts the content of a message.
func (m *Metrics) countSent(a *dispatcherv1.Assignments) {
	tasks, specs, withdrawn := len(a.Tasks), len(a.Specs), len(a.Removed)
	for _, object := range a.Objects {
		switch object.Object.(type) {
		case *dispatcherv1.AssignedObject_Task:
			tasks++
		case *dispatcherv1.AssignedObject_Spec:
			specs++
		}
	}
	for _, ref := range a.Withdrawn {
		if _, ok := ref.Ref.(*dispatcherv1.ObjectRef_Task); ok {
			withdrawn++
		}
	}
	m.tasks.Add(float64(tasks))
	m.specs.Add(float64(specs))
	m.withdrawn.Add(float64(withdrawn))
}
