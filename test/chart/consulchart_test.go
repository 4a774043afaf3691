package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"
)

// TestWithConsul renders Muster's part of the chart that installs Consul as well.
// HashiCorp's part is not on this machine: that what is said of it fits together is
// all that can be held here.
func TestWithConsul(t *testing.T) {
	t.Parallel()
	const from = "../../charts/muster-with-consul"
	var chart struct {
		Version      string `json:"version"`
		Dependencies []struct {
			Name, Version, Repository string
		} `json:"dependencies"`
	}
	var values struct {
		Consul struct {
			Global struct{ Name string }
			Server struct{ Replicas int }
		}
		Muster struct {
			Consul struct{ Addresses []string }
		}
	}
	parse := func(path string, into any) {
		b, err := os.ReadFile(path)
		if err == nil {
			err = yaml.Unmarshal(b, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	parse(filepath.Join(from, "Chart.yaml"), &chart)
	parse(filepath.Join(from, "values.yaml"), &values)
	var muster struct{ Version string }
	parse(filepath.Join(chartDir, "Chart.yaml"), &muster)
	if len(chart.Dependencies) != 2 || chart.Dependencies[0].Version != muster.Version || chart.Version != muster.Version {
		t.Errorf("versions: %+v, want %s of Muster's chart", chart, muster.Version)
	}
	for i := range values.Consul.Server.Replicas {
		name := values.Consul.Global.Name
		if want := fmt.Sprintf("%s-server-%d.%s-server:8501", name, i, name); !slices.Contains(values.Muster.Consul.Addresses, want) {
			t.Errorf("Muster is not told of %s", want)
		}
	}

	// Helm renders no chart whose dependencies are not there; this one has Muster's.
	dir := t.TempDir()
	write(t, filepath.Join(dir, "Chart.yaml"), "apiVersion: v2\nname: muster-with-consul\nversion: "+chart.Version+"\n")
	if err := os.MkdirAll(filepath.Join(dir, "charts"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "charts", "muster"), os.DirFS(chartDir)); err != nil {
		t.Fatal(err)
	}
	out, errs, err := run(t, "helm", "template", "muster", dir, "--kube-version", kubeVersion, "--values", filepath.Join(from, "values.yaml"))
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, errs)
	}
	n := 0
	for _, o := range objects(t, out) {
		d, ok := o.(*appsv1.Deployment)
		if !ok {
			continue
		}
		n++
		flag := "--consul-address=" + strings.Join(values.Muster.Consul.Addresses, ",")
		if ca := d.Spec.Template.Spec.Volumes[0].Secret; !slices.Contains(d.Spec.Template.Spec.Containers[0].Args, flag) || ca.SecretName != values.Consul.Global.Name+"-ca-cert" {
			t.Errorf("%s: arguments %q, authority in %+v", d.Name, d.Spec.Template.Spec.Containers[0].Args, ca)
		}
	}
	if n != 5 {
		t.Errorf("%d managers, want 5", n)
	}
}
