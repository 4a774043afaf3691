//go:build linux

package cni

import (
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// config returns the port as Muster has it.
func (p portMapping) config() *networksdk.Port {
	return &networksdk.Port{
		Protocol:   musterv1.PortConfig_Protocol(musterv1.PortConfig_Protocol_value[strings.ToUpper(p.Protocol)]),
		TargetPort: p.ContainerPort, PublishedPort: p.HostPort, PublishMode: musterv1.PortConfig_HOST,
	}
}
