package chart

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/musterhq/muster/test/kit/process"
	"github.com/musterhq/muster/test/kit/wait"
)

// TestPodsRun runs a pod of each kind, as the chart has it by default, with a worker: over
// a Consul with TLS and ACLs, with Secrets made as docs/install-helm.md says. All probes
// become well, the pod of `helm test` ends well, a task runs, and all end when told to.
func TestPodsRun(t *testing.T) {
	e := startEngine(t)
	consul := startConsul(t, e.gateway)
	address := e.gateway + ":8501"
	made := t.TempDir()
	if _, errs, err := run(t, "muster", "init", "--cluster-key-file", filepath.Join(made, "cluster.key"), "--out", made, "--consul-address", address,
		"--consul-tls", "--consul-ca-file", filepath.Join(consul, "consul-ca.pem"), "--consul-token-file", filepath.Join(consul, "apid")); err != nil {
		t.Fatalf("muster init: %v\n%s", err, errs)
	}
	read := func(dir, name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	tokens := map[string]string{}
	for _, daemon := range []string{"apid", "orchestratord", "allocatord", "schedulerd", "dispatcherd"} {
		tokens[daemon] = read(consul, daemon)
	}
	e.secrets = map[string]map[string]string{
		"muster-consul-ca": {"ca.pem": read(consul, "consul-ca.pem")}, "muster-consul-tokens": tokens,
		"muster-cluster-key": {"cluster.key": read(made, "cluster.key")}, "muster-join-manager": {"token": read(made, "manager.token")},
		"muster-join-worker": {"token": read(made, "worker.token")}, "muster-test": {"token": read(made, "admin.token"), "ca.pem": read(made, "ca.pem")},
	}

	var trial pod
	var ids []string
	addresses := map[string]string{}
	ready := map[string]corev1.PodSpec{}
	for _, p := range pods(objects(t, render(t, "least", "--set", "workers.enabled=true,workers.networks.enabled=true,consul.addresses={"+address+"}"))) {
		if p.kind == "Pod" {
			trial = p
			continue
		}
		if p.kind == "DaemonSet" {
			plugins := filepath.Join(filepath.Dir(program(t, "muster")), "plugins")
			p.spec.Volumes = append(p.spec.Volumes, corev1.Volume{Name: "shipped", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: plugins, Type: ptr(corev1.HostPathSocket)}}})
			p.spec.Containers[0].VolumeMounts = append(p.spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "shipped", MountPath: "/usr/local/lib/muster/plugins"})
		}
		id, at := e.create(t, p.spec, p.name+".muster.svc")
		e.docker(t, nil, "start", id)
		ids, addresses[p.name], ready[p.name] = append(ids, id), at, p.spec
	}
	for name, spec := range ready {
		for _, probe := range []*corev1.Probe{spec.Containers[0].StartupProbe, spec.Containers[0].LivenessProbe, spec.Containers[0].ReadinessProbe} {
			if probe != nil {
				wait.Within(t, limit, name+" is well", func(context.Context) error { return ask(spec.Containers[0], probe, addresses[name]) })
			}
		}
	}

	id, _ := e.create(t, trial.spec, trial.name)
	out, err := process.Docker(t.Context(), nil, "start", "--attach", id)
	if err != nil || !strings.Contains(out, "dispatcherd") {
		t.Fatalf("helm test: %v\n%s", err, out)
	}
	t.Setenv("MUSTER_TOKEN", e.secrets["muster-test"]["token"])
	muster := func(args ...string) (string, error) {
		t.Helper()
		out, errs, err := run(t, "muster", append(args, "--address", addresses["muster-apid"]+":7700", "--tls-ca-file", filepath.Join(made, "ca.pem"))...)
		if err != nil {
			return "", fmt.Errorf("muster %s: %w: %s%s", strings.Join(args, " "), err, out, errs)
		}
		return out, nil
	}
	wait.Within(t, limit, "the worker has the Docker Engine of its node", func(context.Context) error {
		out, err := muster("node", "ls")
		if err == nil && (!strings.Contains(out, "docker") || strings.Contains(out, "docker!")) {
			return errors.New(out)
		}
		return err
	})
	if _, err := muster("service", "create", "--name", "web", "--replicas", "3", "--kind", "null", "--payload", "{}"); err != nil {
		t.Error(err)
	}
	wait.Within(t, limit, "the worker has the networks of its node", func(context.Context) error {
		out, err := muster("node", "inspect", e.name)
		if err == nil && !strings.Contains(out, `"ingress"`) {
			return errors.New(out)
		}
		return err
	})
	for _, args := range [][]string{
		{"network", "create", "back"},
		{"service", "rm", "web"},
		{"network", "rm", "back"},
	} {
		if _, err := muster(args...); err != nil {
			t.Error(err)
		}
	}
	for _, id := range ids {
		e.docker(t, nil, "stop", "--time", "120", id)
		if code := e.docker(t, nil, "inspect", "--format", "{{.State.ExitCode}}", id); code != "0" {
			t.Errorf("a pod that was told to stop ended with %s", code)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// ask makes the request of a probe, as the kubelet does.
func ask(c corev1.Container, probe *corev1.Probe, address string) error {
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	get := probe.HTTPGet
	resp, err := client.Get(strings.ToLower(string(get.Scheme)) + "://" + portOf(c, address, get.Port.String()) + get.Path)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", get.Path, resp.Status)
	}
	return nil
}
