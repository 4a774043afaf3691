package watch_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/wait"
)

// scrape reads the metrics of a process, as Prometheus does.
func scrape(ctx context.Context, address string) (map[string]*dto.MetricFamily, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	return parser.TextToMetricFamilies(resp.Body)
}

// all reads the metrics of all processes of the cluster, by their names.
func (w *watched) all(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	addresses := []string{w.workerOps}
	for _, name := range cluster.Managers() {
		addresses = append(addresses, w.Ops(name))
	}
	all := map[string]*dto.MetricFamily{}
	for _, a := range addresses {
		families, err := scrape(ctx, a)
		if err != nil {
			return nil, err
		}
		maps.Copy(all, families)
	}
	return all, nil
}

// ours is the name of a metric of Muster's.
var ours = regexp.MustCompile(`\bmuster_[a-z0-9_]+`)

// TestMetrics deploys tasks, and looks whether each stage has counted each of them
// once, and whether the documentation names what there is.
func TestMetrics(t *testing.T) {
	w := start(t)
	const tasks = 25
	w.deploy(t, web("web", tasks))
	stages := map[string]uint64{
		"muster_orchestrator_task_created_seconds":    tasks,
		"muster_allocator_endpoint_allocated_seconds": 1,
		"muster_scheduler_task_assigned_seconds":      tasks,
		"muster_dispatcher_task_sent_seconds":         tasks,
		"muster_dispatcher_task_running_seconds":      tasks,
		"muster_worker_task_running_seconds":          tasks,
	}
	var families map[string]*dto.MetricFamily
	wait.Within(t, waitTimeout, "all stages are counted", func(ctx context.Context) error {
		var err error
		if families, err = w.all(ctx); err != nil {
			return err
		}
		for name, want := range stages {
			h := families[name].GetMetric()
			if len(h) != 1 {
				return fmt.Errorf("%s has %d series, want 1", name, len(h))
			}
			if got := h[0].GetHistogram().GetSampleCount(); got != want {
				return fmt.Errorf("%s counts %d, want %d", name, got, want)
			}
			if sum := h[0].GetHistogram().GetSampleSum(); sum < 0 || sum > tasks*waitTimeout.Seconds() {
				return fmt.Errorf("%s sums up to %v s", name, sum)
			}
		}
		return nil
	})

	text, err := os.ReadFile("../../docs/monitoring.md")
	ok(t, err)
	documented := map[string]bool{}
	for _, name := range ours.FindAllString(string(text), -1) {
		documented[name] = true
	}
	for name, f := range families {
		if !ours.MatchString(name) {
			continue
		}
		if !documented[name] {
			t.Errorf("docs/monitoring.md does not name %s (%s)", name, f.GetHelp())
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if !slices.Contains([]string{"daemon", "subsystem", "table", "state", "reason", "kind", "result", "call", "executor", "plugin", "limit", "server"}, l.GetName()) {
					t.Errorf("%s has the label %s, whose values are not known to be few", name, l.GetName())
				}
			}
		}
	}
	// These show once there was something to count.
	rare := []string{"muster_worker_sessions_ended_total", "muster_dispatcher_statuses_ignored_total"}
	for name := range documented {
		base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
		// Nodes without a network plugin have no metrics of one.
		rarely := slices.Contains(rare, name) || strings.HasPrefix(name, "muster_worker_network_")
		if families[name] == nil && families[base] == nil && !rarely {
			t.Errorf("docs/monitoring.md names %s, which there is not", name)
		}
	}
}
