package chart

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// TestLeastRights: no pod has rights in Kubernetes, or more than it needs on its node.
func TestLeastRights(t *testing.T) {
	t.Parallel()
	for _, set := range sets(t) {
		all := objects(t, render(t, set))
		for _, o := range all {
			if o.GetObjectKind().GroupVersionKind().Group == rbacv1.GroupName {
				t.Errorf("%s: there is a %T", set, o)
			}
			if a, ok := o.(*corev1.ServiceAccount); ok && (a.AutomountServiceAccountToken == nil || *a.AutomountServiceAccountToken) {
				t.Errorf("%s: pods of %s are given a token", set, a.Name)
			}
		}
		for _, p := range pods(all) {
			at := set + ": " + p.name
			// Networks of tasks are made in the network of the node.
			networks := p.kind == "DaemonSet" && slices.Contains(p.spec.Containers[0].Args, "--machine-pid=1")
			if p.spec.AutomountServiceAccountToken == nil || *p.spec.AutomountServiceAccountToken || p.spec.HostNetwork || p.spec.HostPID != networks || p.spec.HostIPC {
				t.Errorf("%s has a token, or namespaces of its node", at)
			}
			if root := *p.spec.SecurityContext.RunAsUser == 0; root != (p.kind == "DaemonSet") || p.spec.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s: %+v", at, p.spec.SecurityContext)
			}
			for _, c := range p.spec.Containers {
				s := c.SecurityContext
				if *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || s.Privileged != nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 && p.kind != "DaemonSet" {
					t.Errorf("%s: %+v", at, s)
				}
				if slices.Contains(s.Capabilities.Add, "SYS_ADMIN") != networks || (s.AppArmorProfile != nil) != networks {
					t.Errorf("%s: %+v", at, s)
				}
			}
			for _, v := range p.spec.Volumes {
				if v.HostPath != nil && p.kind != "DaemonSet" {
					t.Errorf("%s mounts %s of its node", at, v.HostPath.Path)
				}
			}
		}
	}
}

// TestNoGap: an update takes no replica away before the next is there, and gives each
// the time that it says it may take.
func TestNoGap(t *testing.T) {
	t.Parallel()
	for _, o := range objects(t, render(t, "least")) {
		d, ok := o.(*appsv1.Deployment)
		if !ok {
			continue
		}
		spec, c := d.Spec.Template.Spec, d.Spec.Template.Spec.Containers[0]
		if d.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 0 || *d.Spec.Replicas != 2 || c.ReadinessProbe.HTTPGet.Path != "/readyz" || c.LivenessProbe.HTTPGet.Path != "/livez" {
			t.Errorf("%s: %+v", d.Name, d.Spec)
		}
		least := int64(15)
		if c.Lifecycle != nil {
			least += c.Lifecycle.PreStop.Sleep.Seconds
		}
		if *spec.TerminationGracePeriodSeconds <= least || !slices.Contains(c.Args, "--stop-timeout=15s") {
			t.Errorf("%s has %d s to end, and takes up to %d", d.Name, *spec.TerminationGracePeriodSeconds, least)
		}
	}
}

// TestPolicies: each port that a daemon listens on is open to some peers, and no
// other port; where peers are named, no port is open to all.
func TestPolicies(t *testing.T) {
	t.Parallel()
	all := objects(t, render(t, "full"))
	open := map[string][]int{}
	for _, o := range all {
		p, ok := o.(*networkingv1.NetworkPolicy)
		if !ok {
			continue
		}
		for _, rule := range p.Spec.Ingress {
			if len(rule.From) == 0 || len(rule.Ports) == 0 {
				t.Errorf("%s lets all peers in: %+v", p.Name, rule)
			}
			for _, port := range rule.Ports {
				open[p.Name] = append(open[p.Name], port.Port.IntValue())
			}
		}
		slices.Sort(open[p.Name])
		open[p.Name] = slices.Compact(open[p.Name])
	}
	for _, p := range pods(all) {
		var listens []int
		for _, port := range p.spec.Containers[0].Ports {
			listens = append(listens, int(port.ContainerPort))
		}
		slices.Sort(listens)
		if p.kind != "Pod" && !slices.Equal(listens, open[p.name]) {
			t.Errorf("%s listens on %v, and open are %v", p.name, listens, open[p.name])
		}
	}
	if n := len(open); n != 6 {
		t.Errorf("%d network policies, want one for each daemon and one for workers", n)
	}
}

// TestAlerts: rules are about metrics that docs/monitoring.md describes, and there is one
// for each row of its table of alerts.
func TestAlerts(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	all := objects(t, render(t, "full"))
	i := slices.IndexFunc(all, func(o runtime.Object) bool { _, ok := o.(*monitoringv1.PrometheusRule); return ok })
	if i < 0 {
		t.Fatal("there are no rules")
	}
	var alerts []string
	metric := regexp.MustCompile(`muster_[a-z_]+`)
	for _, group := range all[i].(*monitoringv1.PrometheusRule).Spec.Groups {
		for _, rule := range group.Rules {
			alerts = append(alerts, rule.Alert)
			names := metric.FindAllString(rule.Expr.String(), -1)
			if len(names) == 0 {
				t.Errorf("%s is about nothing of Muster's", rule.Alert)
			}
			for _, name := range names {
				base := strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")
				if !strings.Contains(string(doc), "`"+base) {
					t.Errorf("%s: docs/monitoring.md does not know %s", rule.Alert, name)
				}
			}
		}
	}
	_, table, _ := strings.Cut(string(doc), "| alert | what to do |\n|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	for row := range strings.Lines(table) {
		name := "Muster"
		for word := range strings.FieldsSeq(strings.SplitN(row, "|", 3)[1]) {
			name += strings.ToUpper(word[:1]) + word[1:]
		}
		if !slices.Contains(alerts, name) {
			t.Errorf("there is no alert %s", name)
		}
	}
	if len(alerts) < 10 || table == "" {
		t.Errorf("there are %d alerts, and the table is %q", len(alerts), table)
	}
}
