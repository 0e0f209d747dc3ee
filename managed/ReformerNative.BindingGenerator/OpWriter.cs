using System.Text;
using System.Text.RegularExpressions;

namespace ReformerNative.BindingGenerator;

/// <summary>
/// Writes the C# of ops: a struct with a property for each field of the C struct, documented by the header's comments,
/// and a method for each function. A property is required unless the comment shows that its field may be left zero.
/// </summary>
internal sealed partial class OpWriter(Header header)
{
    private readonly Dictionary<string, Function[]> _functions = header.Functions
        .Select(function => (Function: function, Op: OpOf(function, header)))
        .Where(pair => pair.Op is not null)
        .GroupBy(pair => pair.Op!, pair => pair.Function)
        .ToDictionary(group => group.Key, group => group.ToArray());

    /// <summary>Every file, by name.</summary>
    public IEnumerable<(string Name, string Text)> Write() =>
        header.Structures.Where(IsGenerated).Select(s => ($"{TypeName(s.Name)}.g.cs", Write(s)));

    private static string? OpOf(Function function, Header header) => function.Parameters
        .Select(p => OpParameter().Match(p.Type).Groups[1].Value)
        .FirstOrDefault(name => header.Structures.Any(s => s.Name == name));

    // Ops, and the groups of tensors inside them.
    private bool IsGenerated(Structure structure) =>
        !Conventions.WrittenByHand.Contains(structure.Name) && (IsOp(structure) || IsGroup(structure.Name));

    private bool IsOp(Structure structure) => _functions.ContainsKey(structure.Name);

    private bool IsGroup(string name) =>
        header.Structures.Any(s => s.Name == name && !IsOp(s) && s.Fields.Any(f => f.Type == "rfn_tensor"));

    private string Write(Structure structure)
    {
        bool isOp = IsOp(structure);
        string type = TypeName(structure.Name);
        var text = new StringBuilder(CSharpWriter.Preamble);
        text.Append("using System.Runtime.CompilerServices;\nusing ReformerNative.Interop;\n");
        text.Append("using ReformerNative.Tensors;\n\nnamespace ReformerNative.Ops;\n\n");
        text.Append(Documentation(structure));
        text.Append(isOp ? "public readonly partial struct " : "public sealed partial class ").Append(type);
        text.Append("\n{\n");
        foreach (Field field in structure.Fields.Where(f => IsProperty(structure, f)))
        {
            text.Append(Property(structure, field)).Append('\n');
        }

        if (isOp)
        {
            AppendMethods(text, structure);
        }

        AppendToNative(text, structure, isOp);
        return text.Append("}\n").ToString();
    }

    private static bool IsProperty(Structure structure, Field field) =>
        field.Name is not ("struct_size" or "reserved")
        && !Conventions.Filled.ContainsKey($"{structure.Name}.{field.Name}");

    private string Property(Structure structure, Field field)
    {
        string comment = Comment(structure, field);
        bool required = IsRequired(field, comment);
        string type = PropertyType(field, comment);
        string optional = IsGroup(field.Type) && !required ? "?" : "";
        return Writing.Document("    ", Sentence(comment, type) + Layout(field))
            + $"    public {(required ? "required " : "")}{type}{optional} {Pascal(field.Name)} {{ get; init; }}\n";
    }

    private static string Comment(Structure structure, Field field)
    {
        string comment = field.Comment.Length > 0 ? field.Comment
            : Conventions.CommonFields.GetValueOrDefault(field.Name, "");
        return comment.Length > 0
            ? string.Join(' ', comment.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries))
            : throw new NotSupportedException(
                $"{structure.Name}.{field.Name} has no comment. Say in the header what it is.");
    }

    // "required: " marks numbers for which zero is no choice. Tensors are inputs of every call, and so required, unless
    // the comment names a condition or a pass.
    private bool IsRequired(Field field, string comment) => field.Type switch
    {
        "rfn_tensor" => field.Length is null && !Optional().IsMatch(comment),
        "rfn_attention_options" => true,
        _ when field.Type.Contains('*', StringComparison.Ordinal) || IsGroup(field.Type) =>
            !Optional().IsMatch(comment),
        _ => comment.StartsWith("required: ", StringComparison.Ordinal),
    };

    /// <summary>What the elements of a struct of results are; empty for other fields.</summary>
    private string Layout(Field field)
    {
        if (field.Type == "rfn_tensor" || !Result().IsMatch(field.Type))
        {
            return "";
        }

        Structure result = ResultOf(field);
        string element = Conventions.ElementTypes[result.Fields[0].Type];
        return $" {element} [{result.Fields.Count}]: {string.Join(", ", result.Fields.Select(f => f.Name))}.";
    }

    private Structure ResultOf(Field field) =>
        header.Structures.Single(s => s.Name == Result().Match(field.Type).Groups[1].Value);

    private static string PropertyType(Field field, string comment)
    {
        if (field.Type == "rfn_tensor" || field.Type.Contains('*', StringComparison.Ordinal))
        {
            return field.Length is null ? "TensorView" : "PositionTables";
        }

        if (field.Type.StartsWith("rfn_", StringComparison.Ordinal))
        {
            return TypeName(field.Type);
        }

        return Enumeration(comment) ?? (IsFlag(comment) ? "bool" : CSharpWriter.Scalars[field.Type]);
    }

    private static bool IsFlag(string comment) => comment.StartsWith("1: ", StringComparison.Ordinal);

    private static string? Enumeration(string comment) =>
        Macros().Match(comment) is { Success: true } match
            ? Conventions.Enumerations.GetValueOrDefault(match.Groups[1].Value)
                ?? throw new NotSupportedException(
                    $"No enumeration stands for {match.Groups[1].Value}_*. Name it in Conventions.Enumerations.")
            : null;

    /// <summary>A comment as a sentence of C#.</summary>
    private string Sentence(string comment, string type)
    {
        string text = Macros().Replace(comment, "");
        text = text.StartsWith("required: ", StringComparison.Ordinal) ? text["required: ".Length..] : text;
        text = IsFlag(text) ? "Whether " + text["1: ".Length..] : text;
        text = text.Trim(' ', ',', ';', ':');
        if (text.Length == 0)
        {
            return $"The <see cref=\"{type}\"/>.";
        }

        text = References(text);
        return char.ToUpperInvariant(text[0]) + text[1..] + (text[^1] is '.' or '>' ? "" : ".");
    }

    private string References(string text)
    {
        text = ElementType().Replace(Writing.Escape(text), match => Conventions.ElementTypes[match.Value]);
        text = Code().Replace(text, "<c>$1</c>");
        return StructName().Replace(
            text,
            match => header.Structures.Any(s => s.Name == match.Value && (IsOp(s) || IsGenerated(s)))
                ? $"<see cref=\"{TypeName(match.Value)}\"/>"
                : match.Value);
    }

    private string Documentation(Structure structure)
    {
        string comment = structure.Comment.Length > 0 ? structure.Comment
            : throw new NotSupportedException($"{structure.Name} has no comment. Say in the header what it is.");
        string[] paragraphs = comment.Split("\n\n", StringSplitOptions.RemoveEmptyEntries);
        var text = new StringBuilder(Writing.Document("", References(Writing.Unwrap(paragraphs[0]))));
        if (paragraphs.Length > 1)
        {
            IEnumerable<string> rest = paragraphs[1..].Select(p => $"<para>\n{References(Writing.Unwrap(p))}\n</para>");
            text.Append(Writing.Document("", string.Join('\n', rest), "remarks"));
        }

        return text.ToString();
    }

    private void AppendMethods(StringBuilder text, Structure structure)
    {
        Function[] functions = _functions[structure.Name];
        Function? size = functions.FirstOrDefault(f => f.Name == structure.Name + "_workspace");
        bool hasPasses = size?.Parameters.Any(p => p.Name == "pass") == true;
        if (size is not null)
        {
            string shapes = "Bytes of scratch memory that "
                + (hasPasses ? "a pass" : "it")
                + " needs. Shapes are enough: views may come from <see cref=\"TensorView.Meta\"/>.";
            text.Append(Writing.Document("    ", shapes));
            text.Append(Writing.Document("    ", "The context that would run it.", "param name=\"context\""));
            text.Append(hasPasses ? Writing.Document("    ", "The pass.", "param name=\"pass\"") : "");
            text.Append(Writing.Document("    ", "Bytes.", "returns"));
            text.Append("    public unsafe long WorkspaceBytes(ReformerContext context");
            text.Append(hasPasses ? ", Pass pass)\n    {\n" : ")\n    {\n");
            text.Append("        ArgumentNullException.ThrowIfNull(context);\n");
            text.Append("        ").Append(structure.Name).Append(" native = ToNative(context);\n");
            text.Append(
                Writing.Call(
                    "        ", "return OpCall.Size(",
                    [
                        "context", "in native", .. hasPasses ? (string[])["pass"] : [],
                        $"&NativeMethods.{size.Name}",
                    ],
                    ");"));
            text.Append("    }\n\n");
        }

        foreach (Function function in functions.Where(f => f != size))
        {
            string method = MethodName(structure.Name, function.Name, functions);
            bool backward = method.EndsWith("Backward", StringComparison.Ordinal);
            string where = size is null ? "context" : "workspace";
            string comment = function.Comment.Length > 0 ? function.Comment
                : method switch
                {
                    "Forward" => "runs the forward pass",
                    "Backward" => "runs the backward pass",
                    _ => "runs it",
                };
            text.Append(Writing.Document("    ", Sentence(comment.Replace('\n', ' '), "")));
            text.Append(
                Writing.Document(
                    "    ",
                    size is null ? "The context to run in."
                        : "Scratch memory of the context to run in; it grows when needed.",
                    $"param name=\"{where}\""));
            text.Append("    public unsafe void ").Append(method);
            text.Append(size is null ? "(ReformerContext context)\n    {\n" : "(Workspace workspace)\n    {\n");
            text.Append("        ArgumentNullException.ThrowIfNull(").Append(where).Append(");\n");
            text.Append("        ").Append(structure.Name).Append(" native = ToNative(");
            text.Append(size is null ? "context);\n" : "workspace.Context);\n");
            List<string> arguments = ["in this", where, "in native"];
            if (hasPasses)
            {
                arguments.Add(backward ? "Pass.Backward" : "Pass.Forward");
            }

            if (size is not null)
            {
                arguments.Add($"&NativeMethods.{size.Name}");
            }

            arguments.Add($"&NativeMethods.{function.Name}");
            text.Append(Writing.Call("        ", "OpCall.Run(", arguments, ");")).Append("    }\n\n");
        }
    }

    // rfn_linear_backward -> Backward, rfn_lsh_combine_backward -> CombineBackward; an op's only pass is Run.
    private static string MethodName(string op, string function, Function[] functions)
    {
        if (!function.StartsWith(op + "_", StringComparison.Ordinal))
        {
            return Pascal(string.Join('_', function.Split('_')[2..]));
        }

        bool both = functions.Any(f => f.Name == op + "_backward");
        return both ? Pascal(function[(op.Length + 1)..]) : "Run";
    }

    private void AppendToNative(StringBuilder text, Structure structure, bool isOp)
    {
        bool pointers = structure.Fields.Any(f => f.Type.Contains('*', StringComparison.Ordinal));
        text.Append(isOp ? "    private " : "    internal ").Append(pointers ? "unsafe " : "");
        text.Append(structure.Name).Append(" ToNative(ReformerContext context) => new()\n    {\n");
        foreach (Field field in structure.Fields.Where(f => f.Name != "reserved"))
        {
            text.Append("        ").Append(CSharpWriter.Identifier(field.Name)).Append(" = ");
            text.Append(NativeValue(structure, field)).Append(",\n");
        }

        text.Append("    };\n");
    }

    private string NativeValue(Structure structure, Field field)
    {
        if (field.Name == "struct_size")
        {
            return $"(uint)Unsafe.SizeOf<{structure.Name}>()";
        }

        if (Conventions.Filled.TryGetValue($"{structure.Name}.{field.Name}", out string? filled))
        {
            return filled;
        }

        string property = Pascal(field.Name);
        string comment = Comment(structure, field);
        if (field.Type == "rfn_tensor")
        {
            return $"{property}.ToNative(context)";
        }

        if (Result().IsMatch(field.Type))
        {
            Structure result = ResultOf(field);
            string element = Conventions.ElementTypes[result.Fields[0].Type];
            return $"{property}.ToResult<{result.Name}>(context, DType.{element})";
        }

        if (IsGroup(field.Type))
        {
            return IsRequired(field, comment)
                ? $"OpCall.Required({property}, nameof({TypeName(structure.Name)})).ToNative(context)"
                : $"{property}?.ToNative(context) ?? default";
        }

        return field.Type == "rfn_attention_options" ? $"{property}.ToNative()"
            : Enumeration(comment) is not null ? $"(int){property}"
            : IsFlag(comment) ? $"{property} ? 1 : 0"
            : property;
    }

    private static string TypeName(string structure) =>
        Conventions.TypeNames.GetValueOrDefault(structure) ?? Pascal(structure["rfn_".Length..]);

    private static string Pascal(string words) =>
        string.Concat(words.Split('_').Select(word => char.ToUpperInvariant(word[0]) + word[1..]));

    [GeneratedRegex(@"^const (rfn_\w+) ?\*$")]
    private static partial Regex OpParameter();

    [GeneratedRegex(@"^(?:const )?(rfn_\w+) ?\*$")]
    private static partial Regex Result();

    [GeneratedRegex(@"\b(optional|absent|forward|backward|LSH|EXACT|stages|rank|added to)\b")]
    private static partial Regex Optional();

    [GeneratedRegex(@"\b(RFN_[A-Z_]+)_\*")]
    private static partial Regex Macros();

    [GeneratedRegex(@"\b(F32|F64|I32|I64|U8|BF16|F16)\b")]
    private static partial Regex ElementType();

    [GeneratedRegex("`([^`]+)`")]
    private static partial Regex Code();

    [GeneratedRegex(@"\brfn_[a-z_0-9]+\b")]
    private static partial Regex StructName();
}
