package convert

import (
	"github.com/moby/moby/api/types/swarm"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// SecretSpec returns Muster's spec for Docker's.
func SecretSpec(s swarm.SecretSpec) *musterv1.SecretSpec {
	return &musterv1.SecretSpec{Name: s.Name, Labels: s.Labels, Data: s.Data, Driver: driver(s.Driver), Templating: driver(s.Templating)}
}

// DockerSecret returns a secret as Docker shows it: without its data.
func DockerSecret(s *musterv1.Secret) swarm.Secret {
	return swarm.Secret{
		ID: s.GetId(), Meta: Meta(s.GetMeta()),
		Spec: swarm.SecretSpec{
			Annotations: annotations(s.GetSpec().GetName(), s.GetSpec().GetLabels()),
			Driver:      dockerDriver(s.GetSpec().GetDriver()), Templating: dockerDriver(s.GetSpec().GetTemplating()),
		},
	}
}

// ConfigSpec returns Muster's spec for Docker's.
func ConfigSpec(s swarm.ConfigSpec) *musterv1.ConfigSpec {
	return &musterv1.ConfigSpec{Name: s.Name, Labels: s.Labels, Data: s.Data, Templating: driver(s.Templating)}
}

// DockerConfig returns a config as Docker shows it, with the data that it has.
func DockerConfig(c *musterv1.Config) swarm.Config {
	return swarm.Config{
		ID: c.GetId(), Meta: Meta(c.GetMeta()),
		Spec: swarm.ConfigSpec{
			Annotations: annotations(c.GetSpec().GetName(), c.GetSpec().GetLabels()),
			Data:        c.GetSpec().GetData(), Templating: dockerDriver(c.GetSpec().GetTemplating()),
		},
	}
}
