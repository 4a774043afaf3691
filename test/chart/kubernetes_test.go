package chart

import (
	"bytes"
	"errors"
	"io"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// documents splits what was rendered; what holds no object is left out.
func documents(t *testing.T, rendered string) [][]byte {
	t.Helper()
	var all [][]byte
	r := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader([]byte(rendered))))
	defer func() { _ = r.Close() }()
	for {
		buffer := make([]byte, len(rendered)+1)
		n, err := r.Read(buffer)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if j, err := yaml.ToJSON(buffer[:n]); err != nil {
			t.Fatalf("%v in\n%s", err, buffer[:n])
		} else if string(j) != "null" {
			all = append(all, buffer[:n])
		}
	}
}

// objects decodes what was rendered into Kubernetes' own types, strictly: a field
// that a type does not have, or that is there twice, is an error.
func objects(t *testing.T, rendered string) []runtime.Object {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, policyv1.AddToScheme, autoscalingv2.AddToScheme, networkingv1.AddToScheme, monitoringv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	var all []runtime.Object
	for _, d := range documents(t, rendered) {
		object, _, err := decoder.Decode(d, nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, d)
		}
		all = append(all, object)
	}
	return all
}

// pods are those that objects make, or are.
func pods(all []runtime.Object) []pod {
	var found []pod
	for _, object := range all {
		switch o := object.(type) {
		case *appsv1.Deployment:
			found = append(found, pod{o.Kind, o.Name, o.Spec.Template.Spec})
		case *appsv1.DaemonSet:
			found = append(found, pod{o.Kind, o.Name, o.Spec.Template.Spec})
		case *corev1.Pod:
			found = append(found, pod{o.Kind, o.Name, o.Spec})
		}
	}
	return found
}

func TestTypes(t *testing.T) {
	t.Parallel()
	for _, set := range sets(t) {
		if n := len(objects(t, render(t, set))); n < 10 {
			t.Errorf("%s renders %d objects only", set, n)
		}
	}
}
