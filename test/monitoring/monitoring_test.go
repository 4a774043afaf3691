// Package monitoring_test holds what compose/monitoring says to Prometheus and
// Grafana to Prometheus' own parser, and to what docs/monitoring.md says there is.
// It is a module of its own: nothing else needs Prometheus' code.
package monitoring_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

const (
	folder = "../../compose/monitoring"
	manual = "../../docs/monitoring.md"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// metrics returns the names that an expression reads.
func metrics(t *testing.T, expr string) []string {
	t.Helper()
	// Grafana's own variable.
	expr = strings.ReplaceAll(expr, "$__rate_interval", "5m")
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %v", expr, err)
		return nil
	}
	var names []string
	parser.Inspect(parsed, func(n parser.Node, _ []parser.Node) error {
		if s, ok := n.(*parser.VectorSelector); ok {
			names = append(names, s.Name)
		}
		return nil
	})
	return names
}

// documented fails for metrics that the manual does not know.
func documented(t *testing.T, where, expr string) {
	t.Helper()
	text := read(t, manual)
	for _, name := range metrics(t, expr) {
		base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
		others := name == "up" || name == "ALERTS" || strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_")
		if !others && !strings.Contains(text, "`"+base+"`") && !strings.Contains(text, "`"+base+"{") {
			t.Errorf("%s reads %s, of which docs/monitoring.md says nothing", where, name)
		}
	}
}

// TestRules reads the rules as Prometheus does, and looks for an alert of each row
// of the manual's table.
func TestRules(t *testing.T) {
	groups, errs := rulefmt.ParseFile(filepath.Join(folder, "prometheus/rules.yaml"), false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Error(err)
	}
	if groups == nil {
		return
	}
	var alerts []string
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			alerts = append(alerts, r.Alert)
			documented(t, r.Alert, r.Expr)
			if r.Annotations["summary"] == "" || r.Labels["severity"] == "" || r.For == 0 {
				t.Errorf("%s has no summary, severity or time", r.Alert)
			}
		}
	}
	_, table, _ := strings.Cut(read(t, manual), "## Alerts")
	table, _, _ = strings.Cut(table, "\n## ")
	rows := regexp.MustCompile(`(?m)^\| ([a-z ]+) \|`).FindAllStringSubmatch(table, -1)
	if len(rows) < 10 {
		t.Fatalf("the manual's table of alerts has %d rows", len(rows))
	}
	for _, row := range rows {
		name := "Muster"
		for word := range strings.FieldsSeq(row[1]) {
			name += strings.ToUpper(word[:1]) + word[1:]
		}
		if row[1] != "alert" && !slices.Contains(alerts, name) {
			t.Errorf("there is no alert %s", name)
		}
	}
}

// settings are those of Prometheus that are used here.
type settings struct {
	Global struct {
		ScrapeInterval     string `yaml:"scrape_interval"`
		EvaluationInterval string `yaml:"evaluation_interval"`
	}
	RuleFiles     []string `yaml:"rule_files"`
	ScrapeConfigs []struct {
		JobName string `yaml:"job_name"`
		Scheme  string
		DNS     []struct {
			Names           []string
			Type            string
			Port            int
			RefreshInterval string `yaml:"refresh_interval"`
		} `yaml:"dns_sd_configs"`
		TLS struct {
			CAFile     string `yaml:"ca_file"`
			CertFile   string `yaml:"cert_file"`
			KeyFile    string `yaml:"key_file"`
			ServerName string `yaml:"server_name"`
			MinVersion string `yaml:"min_version"`
			Insecure   bool   `yaml:"insecure_skip_verify"`
		} `yaml:"tls_config"`
	} `yaml:"scrape_configs"`
}

// TestScrapes looks for each daemon among the jobs, at its service's operations
// port. That it is answered there TestCluster in test/compose holds.
func TestScrapes(t *testing.T) {
	d := yaml.NewDecoder(strings.NewReader(read(t, filepath.Join(folder, "prometheus/prometheus.yaml"))))
	d.KnownFields(true)
	var s settings
	if err := d.Decode(&s); err != nil {
		t.Fatal(err)
	}
	compose := read(t, "../../compose/compose.yaml")
	var jobs []string
	for _, c := range s.ScrapeConfigs {
		jobs = append(jobs, c.JobName)
		if c.Scheme != "https" || len(c.DNS) != 1 || len(c.DNS[0].Names) != 1 || c.TLS.CertFile == "" || c.TLS.MinVersion != "TLS13" {
			t.Errorf("%s: %+v", c.JobName, c)
			continue
		}
		if !strings.Contains(compose, "\n  "+c.DNS[0].Names[0]+":\n") || !strings.Contains(compose, fmt.Sprintf("MUSTER_OPS_LISTEN: 0.0.0.0:%d\n", c.DNS[0].Port)) {
			t.Errorf("%s: compose.yaml has no such service, or port", c.JobName)
		}
		if c.TLS.Insecure || c.TLS.CAFile == "" || c.TLS.ServerName != c.JobName {
			t.Errorf("%s: whom it trusts is %+v", c.JobName, c.TLS)
		}
	}
	if want := []string{"apid", "orchestratord", "allocatord", "schedulerd", "dispatcherd", "workerd"}; !slices.Equal(jobs, want) {
		t.Errorf("jobs are %v, want %v", jobs, want)
	}
	for _, f := range s.RuleFiles {
		if _, err := os.Stat(filepath.Join(folder, "prometheus", f)); err != nil {
			t.Error(err)
		}
	}
}

type source struct{ Type, UID string }

// board is what is looked at of a dashboard.
type board struct {
	UID, Title    string
	SchemaVersion int
	Panels        []struct {
		ID         int
		Type       string
		Title      string
		Datasource source
		GridPos    struct{ X, Y, W, H int }
		Targets    []struct {
			RefID      string
			Expr       string
			Datasource source
		}
	}
}

// TestDashboard parses each query, and looks at how panels lie.
func TestDashboard(t *testing.T) {
	var b board
	if err := json.Unmarshal([]byte(read(t, filepath.Join(folder, "grafana/dashboards/muster.json"))), &b); err != nil {
		t.Fatal(err)
	}
	if b.UID == "" || b.SchemaVersion == 0 || len(b.Panels) == 0 {
		t.Fatal("it is no dashboard")
	}
	sources := read(t, filepath.Join(folder, "grafana/provisioning/datasources/prometheus.yaml"))
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range b.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have id %d", p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q lies on %q, or beyond the right edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			documented(t, p.Title, target.Expr)
			if target.Datasource != p.Datasource || !strings.Contains(sources, "uid: "+target.Datasource.UID+"\n") {
				t.Errorf("panel %q asks %v, which is not provisioned", p.Title, target.Datasource)
			}
		}
	}
}
