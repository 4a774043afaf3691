package chart

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// schemas are those that Kubernetes publishes with its source, by kind and version.
type schemas struct {
	compiler *jsonschema.Compiler
	// definitions are names by "apps/v1 Deployment".
	definitions map[string]string
}

// loadSchemas reads them from the module that tools/kubernetes pins.
func loadSchemas(t *testing.T) *schemas {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", "k8s.io/kubernetes")
	cmd.Dir, cmd.Stderr = "../../tools/kubernetes", os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("fetch k8s.io/kubernetes: %v\n%s", err, out)
	}
	var module struct{ Dir, Version string }
	if err := json.Unmarshal(out, &module); err != nil || module.Version != kubeVersion {
		t.Fatalf("module: %v, %v, want %s", err, module, kubeVersion)
	}
	text, err := os.ReadFile(filepath.Join(module.Dir, "api/openapi-spec/swagger.json"))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	all := parsed.(map[string]any)["definitions"].(map[string]any)
	s := &schemas{compiler: jsonschema.NewCompiler(), definitions: map[string]string{}}
	for name, d := range all {
		d := d.(map[string]any)
		// Swagger has no word for these two: they may be numbers as well.
		if strings.HasSuffix(name, ".intstr.IntOrString") || strings.HasSuffix(name, ".resource.Quantity") {
			d["type"] = []any{"string", "number"}
		}
		// It says what fields there are, and not that there are no others.
		if _, ok := d["properties"]; ok && d["additionalProperties"] == nil {
			d["additionalProperties"] = false
		}
		kinds, _ := d["x-kubernetes-group-version-kind"].([]any)
		for _, kind := range kinds {
			k := kind.(map[string]any)
			s.definitions[fmt.Sprintf("%s %s", strings.TrimPrefix(fmt.Sprintf("%s/%s", k["group"], k["version"]), "/"), k["kind"])] = name
		}
	}
	s.compiler.DefaultDraft(jsonschema.Draft4)
	if err := s.compiler.AddResource("kubernetes.json", map[string]any{"definitions": all}); err != nil {
		t.Fatal(err)
	}
	return s
}

// check holds an object to the schema of its kind. One of no kind of Kubernetes' is
// left to its Go type.
func (s *schemas) check(object map[string]any) error {
	kind := fmt.Sprintf("%s %s", object["apiVersion"], object["kind"])
	if strings.HasPrefix(kind, "monitoring.coreos.com/") {
		return nil
	}
	name, ok := s.definitions[kind]
	if !ok {
		return fmt.Errorf("there is no %s", kind)
	}
	schema, err := s.compiler.Compile("kubernetes.json#/definitions/" + name)
	if err != nil {
		return err
	}
	return schema.Validate(object)
}

func TestSchemas(t *testing.T) {
	t.Parallel()
	s := loadSchemas(t)
	for _, set := range sets(t) {
		for _, d := range documents(t, render(t, set)) {
			j, err := yaml.ToJSON(d)
			if err != nil {
				t.Fatal(err)
			}
			object, err := jsonschema.UnmarshalJSON(bytes.NewReader(j))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.check(object.(map[string]any)); err != nil {
				t.Errorf("%s: %v in\n%s", set, err, d)
			}
		}
	}
	for wrong, object := range map[string]map[string]any{
		"a kind":    {"apiVersion": "apps/v1", "kind": "Deploymnt"},
		"a version": {"apiVersion": "autoscaling/v2beta2", "kind": "HorizontalPodAutoscaler"},
		"a field":   {"apiVersion": "v1", "kind": "Service", "spec": map[string]any{"port": []any{}}},
		"a type":    {"apiVersion": "apps/v1", "kind": "Deployment", "spec": map[string]any{"replicas": "2", "selector": map[string]any{}, "template": map[string]any{}}},
		"no field":  {"apiVersion": "apps/v1", "kind": "Deployment", "spec": map[string]any{"selector": map[string]any{}}},
	} {
		if s.check(object) == nil {
			t.Errorf("an object with %s that is wrong passes", wrong)
		}
	}
}
