// Package tasklog is what all who handle the output of tasks share: the order of
// lines of several tasks, and how lines are written for people.
package tasklog

import (
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/terminal"
)

// shortID is how many characters of a task's id people are shown.
const shortID = 12

// Text writes a line for people, without its end: "web.1.0k2fgm4tq8xw@alpha | hello".
// A terminal acts on nothing in it.
func Text(m *musterv1.LogMessage) string {
	return terminal.Line(Name(m)) + " | " + terminal.Line(string(m.GetData()))
}

// Warning writes a message in the place of lines that are missing.
func Warning(m *musterv1.LogMessage) string { return "warning: " + terminal.Line(m.GetWarning()) }

// Name names a line's task, its container if it has a group, and its node:
// "web.1.0k2fgm4tq8xw@alpha", "web.1.0k2fgm4tq8xw/proxy@alpha".
func Name(m *musterv1.LogMessage) string {
	id := m.GetTaskId()
	node := m.GetNodeName()
	if node == "" {
		node = m.GetNodeId()
	}
	name := m.GetSource() + "." + id[:min(len(id), shortID)]
	if m.GetContainer() != "" {
		name += "/" + m.GetContainer()
	}
	return name + "@" + node
}
