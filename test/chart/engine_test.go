package chart

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/musterhq/muster/test/kit/process"
)

// engine runs pods as containers of the Docker Engine, in a network of their own: each as
// its spec says, with the user, the rights and the files that it would have in
// Kubernetes. It is no kubelet: probes are the test's, and a pod has one container.
type engine struct {
	name, network string
	// gateway is this machine's address in the network.
	gateway string
	// secrets are the cluster's Secrets: their keys' values.
	secrets map[string]map[string]string
	pods    int
}

func startEngine(t *testing.T) *engine {
	t.Helper()
	e := &engine{name: fmt.Sprintf("muster-chart-%d", os.Getpid())}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	e.docker(t, &image, "import", "-", e.name+":test")
	t.Cleanup(func() { e.docker(t, nil, "image", "rm", e.name+":test") })
	// Which networks others have is not known before.
	for range 10 {
		e.network = fmt.Sprintf("10.%d.%d", 200+rand.IntN(50), rand.IntN(256))
		if _, err := process.Docker(t.Context(), nil, "network", "create", "--subnet", e.network+".0/24", "--gateway", e.network+".1", e.name); err == nil {
			e.gateway = e.network + ".1"
			t.Cleanup(func() { e.docker(t, nil, "network", "rm", e.name) })
			return e
		}
	}
	e.docker(t, nil, "network", "create", e.name)
	t.Fatal("no network can be made")
	return nil
}

func (e *engine) docker(t *testing.T, stdin io.Reader, args ...string) string {
	t.Helper()
	out, err := process.Docker(t.Context(), stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// create makes a container of a pod. Others reach it as alias.
func (e *engine) create(t *testing.T, spec corev1.PodSpec, alias string) (id, address string) {
	t.Helper()
	e.pods++
	address = e.network + "." + strconv.Itoa(10+e.pods)
	c := spec.Containers[0]
	args := []string{"create", "--network", e.name, "--ip", address, "--network-alias", alias, "--entrypoint", "/usr/local/bin/muster",
		"--volume", program(t, "muster") + ":/usr/local/bin/muster:ro", "--user", fmt.Sprintf("%d:%d", *spec.SecurityContext.RunAsUser, *spec.SecurityContext.RunAsGroup)}
	if g := spec.SecurityContext.FSGroup; g != nil {
		args = append(args, "--group-add", strconv.FormatInt(*g, 10))
	}
	s := c.SecurityContext
	if *s.ReadOnlyRootFilesystem {
		args = append(args, "--read-only")
	}
	if !*s.AllowPrivilegeEscalation {
		args = append(args, "--security-opt", "no-new-privileges")
	}
	for _, right := range s.Capabilities.Drop {
		args = append(args, "--cap-drop", string(right))
	}
	for _, right := range s.Capabilities.Add {
		args = append(args, "--cap-add", string(right))
	}
	if s.AppArmorProfile != nil && s.AppArmorProfile.Type == corev1.AppArmorProfileTypeUnconfined {
		args = append(args, "--security-opt", "apparmor=unconfined")
	}
	if spec.HostPID {
		args = append(args, "--pid", "host")
		// The way to a process of the node, which process 1 may not be where tests run.
		for i, a := range c.Args {
			if a == "--machine-pid=1" {
				c.Args[i] = "--machine-pid=" + strconv.Itoa(os.Getpid())
			}
		}
	}
	if limit := c.Resources.Limits.Memory(); !limit.IsZero() {
		args = append(args, "--memory", strconv.FormatInt(limit.Value(), 10))
	}
	for i, v := range c.Env {
		value := v.Value
		if from := v.ValueFrom; from != nil && from.SecretKeyRef != nil {
			value = e.secret(t, from.SecretKeyRef.Name, from.SecretKeyRef.Key)
		} else if from != nil {
			value = map[string]string{"status.podIP": address, "spec.nodeName": e.name, "status.hostIP": "127.0.0.1"}[from.FieldRef.FieldPath]
			// The arguments refer to it.
			c.Env[i] = corev1.EnvVar{Name: v.Name, Value: value}
		}
		args = append(args, "--env", v.Name+"="+value)
	}
	for _, m := range c.VolumeMounts {
		for _, v := range spec.Volumes {
			if v.Name == m.Name {
				args = append(args, e.mount(t, v, m, spec.SecurityContext.FSGroup)...)
			}
		}
	}
	args = append(args, e.name+":test")
	id = e.docker(t, nil, append(args, expanded(t, c)...)...)
	t.Cleanup(func() {
		if t.Failed() {
			logs, err := process.Docker(t.Context(), nil, "logs", "--tail", "20", id)
			t.Logf("%s: %v\n%s", alias, err, logs)
		}
		e.docker(t, nil, "rm", "--force", "--volumes", id)
	})
	return id, address
}

func (e *engine) secret(t *testing.T, name, key string) string {
	t.Helper()
	value, ok := e.secrets[name][key]
	if !ok {
		t.Fatalf("there is no Secret %s with the key %s", name, key)
	}
	return value
}

// mount makes a volume as the kubelet would, and returns how it is mounted.
func (e *engine) mount(t *testing.T, v corev1.Volume, m corev1.VolumeMount, group *int64) []string {
	t.Helper()
	switch {
	case v.EmptyDir != nil:
		return []string{"--tmpfs", m.MountPath + ":mode=1777"}
	case v.HostPath != nil && (*v.HostPath.Type == corev1.HostPathSocket || v.HostPath.Path == "/run/netns"):
		return []string{"--volume", v.HostPath.Path + ":" + m.MountPath}
	case v.HostPath != nil:
		return []string{"--volume", t.TempDir() + ":" + m.MountPath}
	}
	dir := t.TempDir()
	for _, item := range v.Secret.Items {
		path := filepath.Join(dir, item.Path)
		write(t, path, e.secret(t, v.Secret.SecretName, item.Key))
		if group != nil {
			if err := os.Chown(path, 0, int(*group)); err != nil {
				t.Fatalf("this test gives files to others, and needs root: %v", err)
			}
		}
		if err := os.Chmod(path, os.FileMode(*v.Secret.DefaultMode)); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"--volume", dir + ":" + m.MountPath + ":ro"}
}

// portOf joins a pod's address and a port that its container names.
func portOf(c corev1.Container, address, name string) string {
	for _, p := range c.Ports {
		if p.Name == name {
			return net.JoinHostPort(address, strconv.Itoa(int(p.ContainerPort)))
		}
	}
	return ""
}
