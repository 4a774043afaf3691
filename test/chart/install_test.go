//go:build kubernetes

package chart

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// TestInstall installs, upgrades and removes the chart at a real API server, with each
// value set in a namespace of its own.
func TestInstall(t *testing.T) {
	server := startAPIServer(t)
	for _, set := range sets(t) {
		t.Run(set, func(t *testing.T) { install(t, server, set) })
	}
}

func install(t *testing.T, server *apiserver, set string) {
	// Managers keep to the strictest of Kubernetes' standards for pods, but for a
	// dispatcher that takes a port of its node.
	for name, level := range map[string]string{set: "restricted", set + "-workers": "privileged"} {
		if code, answer := server.call(t, http.MethodPost, "/api/v1/namespaces", map[string]any{
			"metadata": map[string]any{"name": name, "labels": map[string]string{"pod-security.kubernetes.io/enforce": level}},
		}); code != http.StatusCreated {
			t.Fatalf("make namespace: %d %s", code, answer)
		}
	}
	// The API server has no types of the Prometheus operator.
	flags := []string{"--namespace", set, "--values", "testdata/values/" + set + ".yaml", "--set", "metrics.serviceMonitor.enabled=false,metrics.prometheusRule.enabled=false"}
	want := objects(t, render(t, set, flags...))
	do := func(verb string, more ...string) string {
		return server.helm(t, slices.Concat([]string{verb, "muster", chartDir}, flags, more)...)
	}
	do("install", "--dry-run=server")
	if left := server.list(t, set); len(left) > 0 {
		t.Fatalf("a dry run made %q", left)
	}
	notes := do("install")
	if !strings.Contains(notes, "helm test muster") || strings.Contains(notes, "token-a") {
		t.Errorf("notes do not tell the next step, or a secret:\n%s", notes)
	}
	var names []string
	for _, o := range want {
		if _, hook := o.(*corev1.Pod); hook {
			continue
		}
		m, err := metaOf(o)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, o.GetObjectKind().GroupVersionKind().Kind+" "+m.GetName())
	}
	slices.Sort(names)
	if diff := cmp.Diff(names, server.list(t, set)); diff != "" {
		t.Errorf("objects (-rendered +kept):\n%s", diff)
	}
	for _, o := range want {
		switch o := o.(type) {
		case *appsv1.Deployment:
			refusal := ""
			if ports := o.Spec.Template.Spec.Containers[0].Ports; ports[0].HostPort != 0 {
				refusal = "hostPort"
			}
			server.admit(t, set, o.Spec.Template, refusal)
		case *appsv1.DaemonSet:
			server.admit(t, set, o.Spec.Template, "violates PodSecurity")
			o.Spec.Template.Spec.ServiceAccountName = ""
			server.account(t, set+"-workers")
			server.admit(t, set+"-workers", o.Spec.Template, "")
		case *corev1.Pod:
			server.account(t, set)
			server.admit(t, set, corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: o.Labels}, Spec: o.Spec}, "")
		}
	}

	do("upgrade", "--set", "managers.minReadySeconds=11", "--set", "orchestratord.replicas=5,orchestratord.autoscaling.enabled=false")
	code, answer := server.call(t, http.MethodGet, "/apis/apps/v1/namespaces/"+set+"/deployments", nil)
	var deployments appsv1.DeploymentList
	if err := json.Unmarshal([]byte(answer), &deployments); code != http.StatusOK || err != nil || len(deployments.Items) != 5 {
		t.Fatalf("deployments: %d, %v, %s", code, err, answer)
	}
	for _, d := range deployments.Items {
		if d.Spec.MinReadySeconds != 11 || strings.HasSuffix(d.Name, "orchestratord") && *d.Spec.Replicas != 5 {
			t.Errorf("%s was not upgraded: %+v", d.Name, d.Spec)
		}
	}
	server.helm(t, "rollback", "muster", "1", "--namespace", set)
	server.helm(t, "uninstall", "muster", "--namespace", set)
	if left := server.list(t, set); len(left) > 0 {
		t.Errorf("after uninstall there are %q", left)
	}
}

// list names everything in a namespace that the chart makes, or Helm.
func (s *apiserver) list(t *testing.T, namespace string) []string {
	t.Helper()
	var names []string
	for _, resource := range []string{
		"/apis/apps/v1 deployments", "/apis/apps/v1 daemonsets", "/apis/policy/v1 poddisruptionbudgets", "/apis/autoscaling/v2 horizontalpodautoscalers",
		"/apis/networking.k8s.io/v1 networkpolicies", "/apis/networking.k8s.io/v1 ingresses", "/api/v1 services", "/api/v1 serviceaccounts", "/api/v1 secrets",
		"/api/v1 configmaps", "/api/v1 pods", "/apis/batch/v1 jobs", "/apis/rbac.authorization.k8s.io/v1 roles", "/apis/rbac.authorization.k8s.io/v1 rolebindings",
	} {
		group, plural, _ := strings.Cut(resource, " ")
		code, answer := s.call(t, http.MethodGet, group+"/namespaces/"+namespace+"/"+plural, nil)
		var found struct {
			Kind  string
			Items []struct {
				Metadata metav1.ObjectMeta
				Type     string
			}
		}
		if err := json.Unmarshal([]byte(answer), &found); code != http.StatusOK || err != nil {
			t.Fatalf("list %s: %d, %v, %s", plural, code, err, answer)
		}
		for _, item := range found.Items {
			if item.Type != "helm.sh/release.v1" && item.Metadata.Name != "default" && item.Metadata.Name != "kube-root-ca.crt" {
				names = append(names, strings.TrimSuffix(found.Kind, "List")+" "+item.Metadata.Name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// account makes the service account of a namespace that a controller makes elsewhere.
func (s *apiserver) account(t *testing.T, namespace string) {
	t.Helper()
	if code, answer := s.call(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts", map[string]any{"metadata": map[string]string{"name": "default"}}); code != http.StatusCreated && code != http.StatusConflict {
		t.Fatalf("make service account: %d %s", code, answer)
	}
}

// admit has the server say whether it would take a pod, as a controller would make it.
func (s *apiserver) admit(t *testing.T, namespace string, template corev1.PodTemplateSpec, refusal string) {
	t.Helper()
	if template.Spec.ServiceAccountName == "" {
		s.account(t, namespace)
	}
	// The controller adds the label that tells revisions apart.
	template.Labels["pod-template-hash"] = "1"
	template.Spec.PriorityClassName = ""
	code, answer := s.call(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/pods?dryRun=All&fieldValidation=Strict", corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: "trial", Labels: template.Labels, Annotations: template.Annotations},
		Spec:       template.Spec,
	})
	if refusal == "" && code != http.StatusCreated || refusal != "" && (code != http.StatusForbidden || !strings.Contains(answer, refusal)) {
		t.Errorf("pod in %s: %d %s, want refusal %q", namespace, code, answer, refusal)
	}
}

func metaOf(o runtime.Object) (metav1.Object, error) {
	a, ok := o.(metav1.ObjectMetaAccessor)
	if !ok {
		return nil, http.ErrNotSupported
	}
	return a.GetObjectMeta(), nil
}
