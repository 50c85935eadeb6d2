package hearth

// SourceFile is a file or symbolic link of a function's source.
type SourceFile struct {
	Path       string `json:"path" doc:"Path within the function's directory, with slashes" example:"lib/util.py"`
	Executable bool   `json:"executable,omitempty" doc:"Whether the file is executable"`
	SHA256     string `json:"sha256,omitempty" doc:"SHA-256 of the content in hex digits; missing for a link"`
	Target     string `json:"target,omitempty" doc:"Where a symbolic link points; missing for a file"`
}

// Plan is what a deploy would change.
type Plan struct {
	Function string     `json:"function" doc:"Name of the function"`
	Action   PlanAction `json:"action" enum:"create,update,unchanged" doc:"What a deploy would do"`
	// Generation is that of the function; 0 if there is none.
	Generation int64 `json:"generation,omitempty" doc:"Generation of the function as it is, for If-Match; missing if there is none"`
	// Config is what the configuration would be, defaults filled in.
	Config Config `json:"config" doc:"The configuration with all that this host decides"`
	// Settings and Files are empty unless Action is PlanUpdate.
	Settings []SettingChange `json:"settings,omitempty" doc:"Settings that differ from the live version's"`
	Files    []FileChange    `json:"files,omitempty" doc:"Files that differ from the live version's source, by path"`
	// Warnings tell what of Config the host cannot enforce, and which routes are
	// taken by other functions.
	Warnings []string `json:"warnings,omitempty" doc:"What this host cannot enforce, and what stands in the way now"`
}

// PlanAction is what a deploy would do.
type PlanAction string

// The actions of a Plan.
const (
	PlanCreate    PlanAction = "create"
	PlanUpdate    PlanAction = "update"
	PlanUnchanged PlanAction = "unchanged"
)

// SettingChange is one setting that would change. From is empty for one that is
// not set now, To for one that would not be set any more.
type SettingChange struct {
	Setting string `json:"setting" doc:"Key of hearth.yaml, with dots" example:"env.STAGE"`
	From    string `json:"from,omitempty" doc:"Value now; missing if there is none"`
	To      string `json:"to,omitempty" doc:"Value then; missing if there would be none"`
}

// FileChange is one file that would change.
type FileChange struct {
	Path   string `json:"path" doc:"Path within the function's directory"`
	Change string `json:"change" enum:"added,changed,removed" doc:"How it would change"`
}

// LabelPrefix is that of labels that belong to Hearth. They stay when a deploy
// does not mention them.
const LabelPrefix = "hearth/"

// SetLabel is the label with the name of the set that "hearth apply" made or
// changed the function in.
const SetLabel = LabelPrefix + "set"
