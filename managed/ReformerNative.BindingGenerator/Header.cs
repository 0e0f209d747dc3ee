namespace ReformerNative.BindingGenerator;

/// <summary>What a C header declares, in the order of declaration.</summary>
internal sealed record Header(
    IReadOnlyList<Constant> Constants,
    IReadOnlySet<string> OpaqueTypes,
    IReadOnlyList<Structure> Structures,
    IReadOnlyList<Function> Functions);

/// <summary>An integer macro.</summary>
internal sealed record Constant(string Name, long Value);

/// <summary>A complete struct.</summary>
internal sealed record Structure(string Name, string Comment, IReadOnlyList<Field> Fields);

/// <summary>A field of a struct: <c>Type Name[Length]</c>, with <c>Length</c> null when it is not an array.</summary>
internal sealed record Field(string Name, string Type, int? Length, string Comment);

/// <summary>A function. Types are as written in C, such as <c>const rfn_tensor *</c>.</summary>
internal sealed record Function(string Name, string ReturnType, string Comment, IReadOnlyList<Parameter> Parameters);

/// <summary>A parameter of a function.</summary>
internal sealed record Parameter(string Name, string Type);
