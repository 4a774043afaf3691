package state_test

import (
	"slices"
	"testing"

	recordv1 "github.com/musterhq/muster/api/muster/record/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/state"
)

func TestNetworksOf(t *testing.T) {
	service := &recordv1.Service{IngressNetworkId: "mesh"}
	attached := func(targets ...string) *musterv1.TaskSpec {
		spec := &musterv1.TaskSpec{}
		for _, target := range targets {
			spec.Networks = append(spec.Networks, &musterv1.NetworkAttachmentConfig{Target: target})
		}
		return spec
	}
	port := func(mode musterv1.PortConfig_PublishMode) *musterv1.EndpointSpec {
		return &musterv1.EndpointSpec{Ports: []*musterv1.PortConfig{{TargetPort: 80, PublishMode: mode}}}
	}
	for name, c := range map[string]struct {
		service  *recordv1.Service
		task     *musterv1.TaskSpec
		endpoint *musterv1.EndpointSpec
		want     []string
	}{
		"none":                       {service, attached(), nil, nil},
		"in order of the spec":       {service, attached("b", "a"), nil, []string{"b", "a"}},
		"host and none":              {service, attached("host", "none"), nil, nil},
		"ports of the node":          {service, attached("a"), port(musterv1.PortConfig_HOST), []string{"a"}},
		"ports of the mesh":          {service, attached("a"), port(musterv1.PortConfig_INGRESS), []string{"a", "mesh"}},
		"ports of the default":       {service, attached(), port(0), []string{"mesh"}},
		"before there was a mesh":    {&recordv1.Service{}, attached("a"), port(0), []string{"a"}},
		"a service that was removed": {nil, attached("a"), nil, []string{"a"}},
	} {
		if got := state.NetworksOf(c.service, c.task, c.endpoint); !slices.Equal(got, c.want) {
			t.Errorf("%s: networks are %v, want %v", name, got, c.want)
		}
	}
}

func TestBlockKeysAreInOrderOfNumber(t *testing.T) {
	keys := []string{state.BlockKey("n", 2), state.BlockKey("n", 16), state.BlockKey("n", 0xffffffff)}
	if !slices.IsSorted(keys) {
		t.Errorf("keys are not in order: %v", keys)
	}
}
