package convert

import (
	"errors"
	"reflect"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

var errOtherRuntime = errors.New("TaskTemplate.ContainerSpec: this service's tasks are not containers; change them with muster service update")

// Keep completes the spec of an update by what current has and Docker's spec cannot hold, so
// that a client that reads a service, changes one field and writes it back changes that
// field alone. Ports, networks, secrets and configs keep what they had if they are still
// there.
func Keep(next, current *musterv1.ServiceSpec) error {
	next.DependsOn = current.GetDependsOn()
	now, was := next.GetTask(), current.GetTask()
	if was.GetGeneric() != nil {
		shown := containerSpec(&faults{}, "", value(DockerTaskSpec(was).ContainerSpec))
		if !proto.Equal(shown, now.GetContainer()) {
			return errOtherRuntime
		}
		now.Runtime = was.Runtime
	}
	now.Group = was.GetGroup()
	now.ResourceReferences = was.GetResourceReferences()
	keepEndpoint(next, current)
	attachments := by(was.GetNetworks(), (*musterv1.NetworkAttachmentConfig).GetTarget)
	for _, n := range now.GetNetworks() {
		n.Addresses = attachments[n.Target].GetAddresses()
	}
	if c, had := now.GetContainer(), was.GetContainer(); c != nil {
		keepContainer(c, had)
	}
	return nil
}

func keepEndpoint(next, current *musterv1.ServiceSpec) {
	had := current.GetEndpoint()
	if had.GetDrainDelay() != nil {
		if next.Endpoint == nil {
			next.Endpoint = &musterv1.EndpointSpec{}
		}
		next.Endpoint.DrainDelay = had.DrainDelay
	}
	type key struct {
		target   uint32
		protocol musterv1.PortConfig_Protocol
		mode     musterv1.PortConfig_PublishMode
	}
	of := func(p *musterv1.PortConfig) key {
		k := key{p.GetTargetPort(), p.GetProtocol(), p.GetPublishMode()}
		if k.protocol == musterv1.PortConfig_PROTOCOL_UNSPECIFIED {
			k.protocol = musterv1.PortConfig_TCP
		}
		if k.mode == musterv1.PortConfig_PUBLISH_MODE_UNSPECIFIED {
			k.mode = musterv1.PortConfig_INGRESS
		}
		return k
	}
	ports := by(had.GetPorts(), of)
	for _, p := range next.GetEndpoint().GetPorts() {
		p.ExternalTraffic, p.ProxyProtocol = ports[of(p)].GetExternalTraffic(), ports[of(p)].GetProxyProtocol()
	}
}

func keepContainer(c, had *musterv1.ContainerSpec) {
	if had.GetPullOptions().GetPolicy() != musterv1.PullOptions_POLICY_UNSPECIFIED {
		c.PullOptions = &musterv1.PullOptions{Policy: had.PullOptions.Policy}
	}
	secrets := by(had.GetSecrets(), (*musterv1.SecretReference).GetSecretId)
	for _, r := range c.GetSecrets() {
		if was := secrets[r.SecretId]; was != nil {
			r.OnChange = was.OnChange
			if was.File == nil && reflect.DeepEqual(dockerSecretReference(r), dockerSecretReference(was)) {
				r.File = nil
			}
		}
	}
	configs := by(had.GetConfigs(), (*musterv1.ConfigReference).GetConfigId)
	for _, r := range c.GetConfigs() {
		if was := configs[r.ConfigId]; was != nil {
			r.OnChange = was.OnChange
			if was.Target == nil && reflect.DeepEqual(dockerConfigReference(r), dockerConfigReference(was)) {
				r.Target = nil
			}
		}
	}
}

func by[T any, K comparable](list []*T, key func(*T) K) map[K]*T {
	out := map[K]*T{}
	for _, v := range list {
		out[key(v)] = v
	}
	return out
}
