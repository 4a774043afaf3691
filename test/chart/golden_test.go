package chart

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/golden again")

func TestLint(t *testing.T) {
	t.Parallel()
	for _, set := range sets(t) {
		out, errs, err := run(t, "helm", "lint", "--strict", "--kube-version", kubeVersion, "--values", "testdata/values/"+set+".yaml", chartDir)
		if err != nil {
			t.Errorf("helm lint with %s: %v\n%s%s", set, err, out, errs)
		}
	}
}

// TestGolden compares what is rendered with what was; -update takes it over, to
// be looked at in the diff.
func TestGolden(t *testing.T) {
	t.Parallel()
	for _, set := range sets(t) {
		got := render(t, set)
		path := "testdata/golden/" + set + ".yaml"
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
			t.Errorf("%s renders otherwise (-want +got; `go test ./test/chart -update` takes it over):\n%s", set, diff)
		}
	}
}

// TestRefused gives values that cannot be. The refusal names each.
func TestRefused(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		set  string
		want string
	}{
		"no Consul":                 {"consul.addresses=null", "/consul"},
		"no port":                   {"consul.addresses={consul}", "/consul/addresses/0"},
		"an unknown key":            {"replicas=3", "'replicas'"},
		"a key of a daemon":         {"apid.replica=3", "at '/apid': additional properties 'replica'"},
		"too many replicas":         {"schedulerd.replicas=17", "/schedulerd/replicas"},
		"half a replica":            {"schedulerd.replicas=1.5", "/schedulerd/replicas"},
		"autoscaling of allocatord": {"allocatord.autoscaling.enabled=true", "/allocatord/autoscaling/enabled"},
		"a mode":                    {"tls.mode=off", "/tls/mode"},
		"some tokens":               {"consul.acl.tokens.apid=x", "/consul/acl/tokens"},
		"a prefix":                  {"prefix=/muster", "/prefix"},
		"a time":                    {"tls.certificateLifetime=90 days", "/tls/certificateLifetime"},
		"a flag":                    {"apid.extraArgs={sweep-interval=1m}", "/apid/extraArgs/0"},
		"an affinity":               {"managers.antiAffinity=some", "/managers/antiAffinity"},
		"a service":                 {"apid.service.type=Public", "/apid/service/type"},
		"a service of schedulerd":   {"schedulerd.service.type=ClusterIP", "at '/schedulerd': additional properties 'service'"},
		"an ingress to nowhere":     {"ingress.enabled=true", "/ingress/hosts"},
		"a socket":                  {"workers.docker.socket=docker.sock", "/workers/docker/socket"},
		"a peer":                    {"networkPolicy.clients[0].pods=all", "/networkPolicy/clients/0"},
		"a digest":                  {"image.digest=sha256:1", "/image/digest"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, errs, err := run(t, "helm", "template", "muster", chartDir, "--kube-version", kubeVersion, "--values", "testdata/values/least.yaml", "--set", test.set)
			if err == nil || !strings.Contains(errs, test.want) {
				t.Errorf("error %v does not name %s:\n%s", err, test.want, errs)
			}
		})
	}
}
