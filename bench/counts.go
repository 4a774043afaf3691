package main

import (
	"context"
	"fmt"
	"net/http"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// counts is what one manager did to the store.
type counts struct {
	Commits  float64 `json:"commits"`
	Ops      float64 `json:"ops"`
	Bytes    float64 `json:"bytes"`
	Repeated float64 `json:"repeated"` // commits that were in conflict
	Wakeups  float64 `json:"wakeups"`
	Pages    float64 `json:"pages"` // that were read
}

func (c counts) minus(d counts) counts {
	return counts{
		c.Commits - d.Commits, c.Ops - d.Ops, c.Bytes - d.Bytes,
		c.Repeated - d.Repeated, c.Wakeups - d.Wakeups, c.Pages - d.Pages,
	}
}

func (c counts) String() string {
	return fmt.Sprintf("%.0f commits (%.0f operations, %.0f KB) and %.0f in conflict; %.0f wake-ups, %.0f pages read",
		c.Commits, c.Ops, c.Bytes/1000, c.Repeated, c.Wakeups, c.Pages)
}

// storeCounts are those of all managers that are processes of their own.
func (s *site) storeCounts(ctx context.Context) (map[string]counts, error) {
	all := map[string]counts{}
	if s.cluster.Consul == nil {
		return all, nil
	}
	for _, name := range s.cluster.Names() {
		c, err := readCounts(ctx, s.cluster.Ops(name))
		if err != nil {
			return nil, fmt.Errorf("metrics of %s: %w", name, err)
		}
		all[name] = c
	}
	return all, nil
}

func readCounts(ctx context.Context, ops string) (c counts, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ops+"/metrics", nil)
	if err != nil {
		return c, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return c, err
	}
	defer func() { _ = resp.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return c, err
	}
	sum := func(name string, value func(*dto.Metric) float64) (total float64) {
		for _, m := range families["muster_store_"+name].GetMetric() {
			total += value(m)
		}
		return total
	}
	counter := func(m *dto.Metric) float64 { return m.GetCounter().GetValue() }
	histogram := func(m *dto.Metric) float64 { return m.GetHistogram().GetSampleSum() }
	return counts{
		Commits:  sum("commit_ops", func(m *dto.Metric) float64 { return float64(m.GetHistogram().GetSampleCount()) }),
		Ops:      sum("commit_ops", histogram),
		Bytes:    sum("commit_bytes", histogram),
		Repeated: sum("commit_conflicts_total", counter),
		Wakeups:  sum("watch_wakeups_total", counter),
		Pages:    sum("pages_read_total", counter),
	}, nil
}
