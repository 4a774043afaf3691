package stack_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/stack"
)

// golden reads the stack that package compose makes of a folder of its corpus, and the names
// of the objects that must exist. The stack is nil if the files are refused.
func golden(t *testing.T, dir string) (*musterv1.StackSpec, [][]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "golden"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.HasPrefix(text, []byte("error:")) {
		return nil, nil
	}
	var external [][]string
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "# external: "); ok {
			external = append(external, strings.Fields(rest))
		}
	}
	json, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	spec := &musterv1.StackSpec{}
	if err := protojson.Unmarshal(json, spec); err != nil {
		t.Fatal(err)
	}
	return spec, external
}

// TestSecondDeploymentOfCorpusChangesNothing deploys each stack of the compose corpus twice,
// and removes it.
func TestSecondDeploymentOfCorpusChangesNothing(t *testing.T) {
	t.Parallel()
	dirs, err := filepath.Glob("compose/testdata/corpus/*")
	if err != nil {
		t.Fatal(err)
	}
	deployed := 0
	for _, dir := range dirs {
		spec, external := golden(t, dir)
		if spec == nil {
			continue
		}
		t.Run(filepath.Base(dir), func(t *testing.T) {
			run(t, func(t *testing.T, c *cluster) {
				for _, e := range external {
					if err := c.createExternal(e[0], e[1]); err != nil {
						t.Fatal(err)
					}
				}
				before := c.names()
				_, err := stack.Deploy(t.Context(), c.client(nil), spec, stack.Options{})
				if code := status.Code(err); code == codes.FailedPrecondition || code == codes.Unimplemented {
					// No node has the CNI plugin, or the API lacks drivers of secrets.
					t.Skip(err)
				}
				if err != nil {
					t.Fatal(err)
				}
				deployed++
				wantList(t, "plan", c.plan(spec, stack.Options{Prune: true}), nil)
				if result := c.deploy(spec, stack.Options{Prune: true}); result.Stack.Revision.Number != 1 {
					t.Errorf("the second deployment made revision %d", result.Stack.Revision.Number)
				}
				if err := stack.Remove(t.Context(), c.client(nil), spec.Name, nil); err != nil {
					t.Fatal(err)
				}
				// The ingress network is the cluster's.
				left := slices.DeleteFunc(c.names(), func(name string) bool { return name == "network ingress" })
				wantList(t, "objects at last", left, before)
			})
		})
	}
	if deployed < 30 {
		t.Errorf("%d stacks were deployed; want at least 30", deployed)
	}
}

func (c *cluster) createExternal(kind, name string) (err error) {
	switch kind {
	case "network":
		_, err = c.CreateNetwork(c.t.Context(), &musterv1.CreateNetworkRequest{Spec: &musterv1.NetworkSpec{Name: name}})
	case "config":
		_, err = c.CreateConfig(c.t.Context(), &musterv1.CreateConfigRequest{Spec: &musterv1.ConfigSpec{Name: name, Data: []byte("x")}})
	case "secret":
		_, err = c.CreateSecret(c.t.Context(), &musterv1.CreateSecretRequest{Spec: &musterv1.SecretSpec{Name: name, Data: []byte("x")}})
	}
	return err
}
