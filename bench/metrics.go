package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/musterhq/muster/test/kit/cluster"
)

// managers are the names of the manager processes that run.
func (s *site) managers() []string {
	var names []string
	for _, name := range append(cluster.Managers(), "dev") {
		if s.cluster.Process(name) != nil {
			names = append(names, name)
		}
	}
	return names
}

// committed is how many bytes the managers have written to the store so far, as
// their metrics say.
func (s *site) committed(ctx context.Context) (float64, error) {
	sum := 0.0
	for _, name := range s.managers() {
		n, err := histogramSum(ctx, s.cluster.Ops(name), "muster_store_commit_bytes")
		if err != nil {
			return 0, fmt.Errorf("metrics of %s: %w", name, err)
		}
		sum += n
	}
	return sum, nil
}

// histogramSum reads the sum of a histogram's observations, whatever its labels.
func histogramSum(ctx context.Context, ops, name string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ops+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for _, m := range families[name].GetMetric() {
		sum += m.GetHistogram().GetSampleSum()
	}
	return sum, nil
}
