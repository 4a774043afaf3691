package convert

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestServiceSpecDropsNoField sets each field of Docker's spec alone and expects that
// Muster's spec differs, or that an error names the field.
func TestServiceSpecDropsNoField(t *testing.T) {
	same := map[string]string{
		".TaskTemplate.Runtime": "container is the only value, and the default",
	}
	checkFields(t, swarm.ServiceSpec{}, same, func(s swarm.ServiceSpec) (proto.Message, error) {
		if s.TaskTemplate.ContainerSpec == nil {
			s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{}
		}
		return ServiceSpec(s)
	})
}

func TestNodeSpecDropsNoField(t *testing.T) {
	checkFields(t, swarm.NodeSpec{}, nil, func(s swarm.NodeSpec) (proto.Message, error) { return NodeSpec(s) })
}

func TestNetworkSpecDropsNoField(t *testing.T) {
	checkFields(t, network.CreateRequest{}, map[string]string{
		".EnableIPv4": "networks have IPv4 in any case; false is refused",
		".Scope":      "swarm is the only value, and the default",
	}, func(r network.CreateRequest) (proto.Message, error) { return NetworkSpec(r) })
}

func TestSecretAndConfigSpecsDropNoField(t *testing.T) {
	checkFields(t, swarm.SecretSpec{}, nil, func(s swarm.SecretSpec) (proto.Message, error) { return SecretSpec(s), nil })
	checkFields(t, swarm.ConfigSpec{}, nil, func(s swarm.ConfigSpec) (proto.Message, error) { return ConfigSpec(s), nil })
}

func TestClusterSpecDropsNoField(t *testing.T) {
	checkFields(t, swarm.Spec{}, map[string]string{
		".CAConfig.ForceRotate": "the caller rotates the root",
	}, func(s swarm.Spec) (proto.Message, error) {
		out, _, err := ClusterSpec(s, &musterv1.ClusterSpec{})
		return out, err
	})
}

// checkFields sets each field alone.
func checkFields[T any](t *testing.T, zero T, same map[string]string, convert func(T) (proto.Message, error)) {
	t.Helper()
	base, err := convert(zero)
	if err != nil {
		t.Fatalf("the empty spec is refused: %v", err)
	}
	fields, used := 0, map[string]bool{}
	walk(reflect.TypeFor[T](), "", func(path string, set func(reflect.Value)) {
		fields++
		var spec T
		set(reflect.ValueOf(&spec).Elem())
		out, err := convert(spec)
		// Options of mounts and others have a name beside them that says what they mean.
		name := path[strings.LastIndex(path, ".")+1:]
		name, _, _ = strings.Cut(name, "[")
		switch {
		case err != nil && !strings.Contains(err.Error(), name) && !parentNamed(err, path):
			t.Errorf("%s is refused, but not by its name: %v", path, err)
		case err == nil && proto.Equal(out, base):
			used[path] = true
			if _, known := same[path]; !known {
				t.Errorf("%s is dropped silently", path)
			}
		}
	})
	for path := range same {
		if !used[path] {
			t.Errorf("%s is said to change nothing, and it does or does not exist", path)
		}
	}
	if fields == 0 {
		t.Fatal("no field was tried")
	}
}

// parentNamed tells whether an error names the struct that a field is in.
func parentNamed(err error, path string) bool {
	parts := strings.Split(path, ".")
	parent, _, _ := strings.Cut(parts[len(parts)-2], "[")
	return parent != "" && parent != "TaskTemplate" && strings.Contains(err.Error(), parent) || strings.Contains(path, ".PluginSpec.") && strings.Contains(err.Error(), "PluginSpec")
}

// walk calls visit for each field of a struct and of what it holds, with a function that
// sets that field alone.
func walk(t reflect.Type, path string, visit func(path string, set func(reflect.Value))) {
	for i := range t.NumField() {
		f := t.Field(i)
		at := path + "." + f.Name
		if f.Anonymous {
			at = path
		}
		descend(f.Type, at, func(p string, set func(reflect.Value)) {
			visit(p, func(v reflect.Value) { set(v.Field(i)) })
		})
	}
}

func descend(t reflect.Type, path string, visit func(path string, set func(reflect.Value))) {
	switch {
	case t == reflect.TypeFor[netip.Addr]() || t == reflect.TypeFor[netip.Prefix]():
		visit(path, func(v reflect.Value) { v.Set(sample(t, path)) })
	case t.Kind() == reflect.Struct:
		walk(t, path, visit)
	case t.Kind() == reflect.Pointer:
		if t.Elem().Kind() == reflect.Struct && t.Elem().NumField() > 0 {
			descend(t.Elem(), path, func(p string, set func(reflect.Value)) {
				visit(p, func(v reflect.Value) {
					v.Set(reflect.New(t.Elem()))
					set(v.Elem())
				})
			})
			return
		}
		visit(path, func(v reflect.Value) { v.Set(sample(t, path)) })
	case t.Kind() == reflect.Slice && structs(t.Elem()):
		descend(t.Elem(), path+"[0]", func(p string, set func(reflect.Value)) {
			visit(p, func(v reflect.Value) {
				v.Set(reflect.MakeSlice(t, 1, 1))
				set(v.Index(0))
			})
		})
	default:
		visit(path, func(v reflect.Value) { v.Set(sample(t, path)) })
	}
}

func structs(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[netip.Addr]() && t != reflect.TypeFor[netip.Prefix]()
}

// words are values of fields that have only some.
var words = map[string]string{
	"FailureAction": "rollback", "Order": "start-first", "Condition": "none", "Protocol": "udp", "PublishMode": "host", "Availability": "drain",
	"Role": "worker", "Runtime": "container", "Scope": "swarm", ".EndpointSpec.Mode": "dnsrr", ".Seccomp.Mode": "custom", ".AppArmor.Mode": "disabled",
	".Mounts[0].Type": "tmpfs",
}

// sample returns a value other than the zero value.
func sample(t reflect.Type, path string) reflect.Value {
	v := reflect.New(t).Elem()
	switch {
	case t == reflect.TypeFor[netip.Addr]():
		v.Set(reflect.ValueOf(netip.MustParseAddr("10.1.2.3")))
	case t == reflect.TypeFor[netip.Prefix]():
		v.Set(reflect.ValueOf(netip.MustParsePrefix("10.1.0.0/16")))
	case t == reflect.TypeFor[time.Duration]():
		v.SetInt(int64(3 * time.Second))
	case t == reflect.TypeFor[os.FileMode]():
		v.SetUint(0o440)
	default:
		switch t.Kind() {
		case reflect.Pointer:
			v.Set(reflect.New(t.Elem()))
			v.Elem().Set(sample(t.Elem(), path))
		case reflect.Struct:
		case reflect.String:
			text := "x"
			for suffix, word := range words {
				if strings.HasSuffix(path, suffix) {
					text = word
				}
			}
			v.SetString(text)
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Int, reflect.Int64:
			v.SetInt(7)
		case reflect.Uint64, reflect.Uint32, reflect.Uint8:
			v.SetUint(7)
		case reflect.Float32:
			v.SetFloat(0.5)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(t, 1, 1))
			v.Index(0).Set(sample(t.Elem(), path))
		case reflect.Map:
			v.Set(reflect.MakeMap(t))
			v.SetMapIndex(reflect.ValueOf("k"), sample(t.Elem(), path))
		default:
			panic(fmt.Sprintf("no sample for %s at %s", t, path))
		}
	}
	return v
}
