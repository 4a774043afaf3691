package compose_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/apid/validate"
	"github.com/musterhq/muster/internal/placement"
	"github.com/musterhq/muster/stack/compose"
)

// checkSpec returns what the API says of a service, field by field.
func checkSpec(t *testing.T, check func(*validate.Validator, *validate.Catalog) error) (codes.Code, []*errdetails.BadRequest_FieldViolation) {
	t.Helper()
	validator := validate.New(func(constraints []string) error {
		_, err := placement.ParseConstraints(constraints)
		return err
	})
	node := placement.NewNode("n", &recordv1.NodeState{State: musterv1.NodeStatus_READY, Description: &musterv1.NodeDescription{
		NetworkDrivers: []*musterv1.NetworkDriverDescription{{Drivers: []string{"overlay", "bridge", "cni"}, Capabilities: []string{"encrypted", "ipv6"}}},
	}}, &recordv1.Node{Spec: &musterv1.NodeSpec{Availability: musterv1.NodeSpec_ACTIVE}})
	err := check(validator, validate.NewCatalog(slices.Values([]*placement.Node{node})))
	s := status.Convert(err)
	for _, d := range s.Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			return s.Code(), bad.FieldViolations
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return codes.OK, nil
}

// TestAPIAcceptsSpecsOfCorpus hands every spec of the corpus to the checks of the API.
func TestAPIAcceptsSpecsOfCorpus(t *testing.T) {
	specs := stacks(t)
	if len(specs) < 35 {
		t.Errorf("the corpus has %d stacks without errors; want at least 35", len(specs))
	}
	for name, stack := range specs {
		accept := func(object string, check func(*validate.Validator, *validate.Catalog) error) {
			code, violations := checkSpec(t, check)
			for _, v := range violations {
				// The API does not have drivers of secrets yet, and Load is ahead of it.
				if code == codes.Unimplemented && strings.HasSuffix(v.Field, ".driver") {
					continue
				}
				t.Errorf("%s: the API refuses %s: %v: %s: %s", name, object, code, v.Field, v.Description)
			}
		}
		for _, spec := range stack.Services {
			accept(spec.Name, func(v *validate.Validator, c *validate.Catalog) error { return v.Service(spec, c) })
		}
		for _, spec := range stack.Networks {
			accept(spec.Name, func(v *validate.Validator, c *validate.Catalog) error { return v.Network(spec, c) })
		}
		for _, spec := range stack.Configs {
			accept(spec.Name, func(v *validate.Validator, _ *validate.Catalog) error { return v.Config(spec, true) })
		}
		for _, spec := range stack.Secrets {
			accept(spec.Name, func(v *validate.Validator, _ *validate.Catalog) error { return v.Secret(spec, spec.Driver == nil) })
		}
		accept("the stack", func(v *validate.Validator, c *validate.Catalog) error { return v.Stack(stack, "", c) })
	}
}

// TestLoadRefusesWhatAPIDoesNotHaveYet fails when the API gains something that Load still
// refuses.
func TestLoadRefusesWhatAPIDoesNotHaveYet(t *testing.T) {
	result, err := loadText(t, "services: {web: {image: nginx}}", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*musterv1.ServiceSpec){
		"jobs": func(s *musterv1.ServiceSpec) {
			s.Mode = &musterv1.ServiceSpec_ReplicatedJob{ReplicatedJob: &musterv1.ReplicatedJob{}}
		},
		"placement preferences": func(s *musterv1.ServiceSpec) {
			s.Task.Placement = &musterv1.Placement{Preferences: []*musterv1.PlacementPreference{{
				Preference: &musterv1.PlacementPreference_Spread{Spread: &musterv1.SpreadOver{SpreadDescriptor: "node.labels.zone"}},
			}}}
		},
		"generic resources": func(s *musterv1.ServiceSpec) {
			s.Task.Resources = &musterv1.ResourceRequirements{Reservations: &musterv1.Resources{Generic: []*musterv1.GenericResource{{
				Kind: "SSD", Resource: &musterv1.GenericResource_Discrete{Discrete: 1},
			}}}}
		},
		"options of attachments": func(s *musterv1.ServiceSpec) {
			s.Task.Networks[0].DriverOptions = map[string]string{"a": "b"}
		},
		"cluster volumes": func(s *musterv1.ServiceSpec) {
			s.Task.GetContainer().Mounts = []*musterv1.Mount{{Type: musterv1.Mount_CLUSTER, Source: "v", Target: "/v"}}
		},
	} {
		again, err := loadText(t, "services: {web: {image: nginx}}", nil)
		if err != nil {
			t.Fatal(err)
		}
		change(again.Spec.Services[0])
		code, violations := checkSpec(t, func(v *validate.Validator, c *validate.Catalog) error { return v.Service(again.Spec.Services[0], c) })
		if code != codes.Unimplemented {
			t.Errorf("the API has %s now (%v %v): honour them in compose files", name, code, violations)
		}
	}
	if len(result.Spec.Services) != 1 {
		t.Errorf("got %d services; want 1", len(result.Spec.Services))
	}
}

// loadText loads one file from standard input.
func loadText(t *testing.T, text string, change func(*compose.Options)) (*compose.Result, error) {
	t.Helper()
	opts := compose.Options{Files: []string{"-"}, Stdin: strings.NewReader(text), Name: "shop", WorkingDir: t.TempDir()}
	if change != nil {
		change(&opts)
	}
	return compose.Load(t.Context(), opts)
}
