package chart

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestArguments has Muster's own program read the arguments of every container, so
// that the chart cannot name a flag that is not there, or a value that it cannot
// have. A daemon then gets one setting more that it refuses, and so does not start:
// its refusal must be of that one alone.
func TestArguments(t *testing.T) {
	t.Parallel()
	const wrong = "--log-format=none-such"
	for _, set := range sets(t) {
		for _, p := range pods(objects(t, render(t, set))) {
			for _, c := range p.spec.Containers {
				args := expanded(t, c)
				if len(c.Command) > 0 {
					t.Errorf("%s: %s/%s has a command of its own: the image's is muster", set, p.kind, p.name)
				}
				if p.kind == "Pod" {
					// A question: asked for help, it reads its flags and does nothing else.
					if _, errs, err := run(t, "muster", append(args, "--help")...); err != nil {
						t.Errorf("%s: muster %s: %v\n%s", set, strings.Join(args, " "), err, errs)
					}
					continue
				}
				_, errs, err := run(t, "muster", append(args, wrong)...)
				if err == nil || errs != "muster: --log-format: \"none-such\" is neither console nor json\nSee --help.\n" {
					t.Errorf("%s: muster %s: %v\n%s", set, strings.Join(args, " "), err, errs)
				}
			}
		}
	}
}

// expanded are a container's arguments as Kubernetes gives them.
func expanded(t *testing.T, c corev1.Container) []string {
	t.Helper()
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			env[e.Name] = map[string]string{"status.podIP": "10.1.2.3", "status.hostIP": "10.0.0.3", "spec.nodeName": "node-1"}[e.ValueFrom.FieldRef.FieldPath]
		}
	}
	var args []string
	for _, a := range c.Args {
		args = append(args, regexp.MustCompile(`\$\([A-Z_]+\)`).ReplaceAllStringFunc(a, func(ref string) string {
			value := env[strings.Trim(ref, "$()")]
			if value == "" {
				t.Errorf("container %s: %s has no value", c.Name, ref)
			}
			return value
		}))
	}
	return args
}

// TestFilesAreMounted looks for each file that an argument names in what is mounted.
func TestFilesAreMounted(t *testing.T) {
	t.Parallel()
	for _, set := range sets(t) {
		for _, p := range pods(objects(t, render(t, set))) {
			var offered []string
			for _, m := range p.spec.Containers[0].VolumeMounts {
				i := slices.IndexFunc(p.spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
				if i < 0 {
					t.Errorf("%s: %s mounts %s, which is no volume", set, p.name, m.Name)
					continue
				}
				s := p.spec.Volumes[i].Secret
				switch {
				case s == nil:
					offered = append(offered, m.MountPath+"/*")
				case len(s.Items) == 0:
					// A Secret of type kubernetes.io/tls.
					offered = append(offered, m.MountPath+"/tls.crt", m.MountPath+"/tls.key", m.MountPath+"/ca.crt")
				default:
					for _, item := range s.Items {
						offered = append(offered, m.MountPath+"/"+item.Path)
					}
				}
			}
			for _, a := range p.spec.Containers[0].Args {
				flag, path, _ := strings.Cut(a, "=")
				if !strings.HasSuffix(flag, "-file") && !strings.HasSuffix(flag, "-dir") || flag == "--plugin-dir" {
					continue
				}
				folder := path
				if strings.HasSuffix(flag, "-file") {
					folder = filepath.Dir(path)
				}
				if !slices.Contains(offered, path) && !slices.Contains(offered, folder+"/*") {
					t.Errorf("%s: %s has %s, and mounts %q", set, p.name, a, offered)
				}
			}
		}
	}
}
