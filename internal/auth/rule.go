package auth

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
)

// anyone is the rule of methods without a required identity.
var anyone = &authv1.Rule{Anyone: true}

// foreign holds the rules of services whose contract is not Muster's.
func foreign(service string) *authv1.Rule {
	if service == "grpc.health.v1.Health" {
		// Health probes have no identity, and the answer tells nothing else.
		return anyone
	}
	return nil
}

// RuleOf returns the rule that a method states, in its contract.
func RuleOf(m protoreflect.MethodDescriptor) (*authv1.Rule, error) {
	if r := foreign(string(m.Parent().FullName())); r != nil {
		return r, nil
	}
	r, ok := proto.GetExtension(m.Options(), authv1.E_Rule).(*authv1.Rule)
	if !ok || r == nil || len(r.Roles) == 0 && !r.Anyone {
		return nil, fmt.Errorf("method %s does not state who may call it (option muster.auth.v1.rule)", m.FullName())
	}
	if r.Anyone && len(r.Roles) > 0 || slices.Contains(r.Roles, authv1.Role_ROLE_UNSPECIFIED) {
		return nil, fmt.Errorf("method %s states a rule that contradicts itself", m.FullName())
	}
	return r, nil
}

// rulesOf returns the rules of all methods of some services, by the methods'
// names in gRPC: "/muster.v1.ControlService/GetTask".
func rulesOf(services map[string]grpc.ServiceInfo) (map[string]*authv1.Rule, error) {
	rules := map[string]*authv1.Rule{}
	for name, info := range services {
		for _, m := range info.Methods {
			d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name + "." + m.Name))
			if err != nil {
				return nil, fmt.Errorf("find contract of %s.%s: %w", name, m.Name, err)
			}
			method, ok := d.(protoreflect.MethodDescriptor)
			if !ok {
				return nil, fmt.Errorf("%s.%s is not a method of the contract", name, m.Name)
			}
			rule, err := RuleOf(method)
			if err != nil {
				return nil, err
			}
			rules["/"+name+"/"+m.Name] = rule
		}
	}
	return rules, nil
}

// allows reports whether a rule admits a role. Each role of a person includes the lesser
// ones.
func allows(rule *authv1.Rule, role authv1.Role) bool {
	return rule.Anyone || slices.ContainsFunc(rule.Roles, func(r authv1.Role) bool {
		return r == role || IsPerson(r) && IsPerson(role) && role > r
	})
}

// needs names the roles that a rule admits, for an error.
func needs(rule *authv1.Rule) string {
	var names []string
	for _, r := range rule.Roles {
		name := RoleName(r)
		if IsPerson(r) && r != authv1.Role_ADMIN {
			name += " (or higher)"
		}
		names = append(names, name)
	}
	return strings.Join(names, " or ")
}
